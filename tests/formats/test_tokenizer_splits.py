"""Cutting pieces into pieces, against looking every cut up in a dictionary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.errors import UnsupportedModel
from treadle.formats.tokenizer_splits import Pieces


def cuts(pieces: list[str]) -> list[tuple[int, int, int]]:
    number = {piece: i for i, piece in enumerate(pieces)}
    return sorted(
        (i, number[piece[:at]], number[piece[at:]])
        for i, piece in enumerate(pieces)
        for at in range(1, len(piece))
        if piece[:at] in number and piece[at:] in number
    )


@given(st.lists(st.text("ab\0\U0010ffff\ud800", min_size=1, max_size=7), min_size=1, max_size=60, unique=True))
def test_every_cut_is_found(pieces: list[str]) -> None:
    found = [tuple(map(int, row)) for row in zip(*Pieces(pieces).splits(), strict=True)]
    assert sorted(found) == cuts(pieces)


def thue_morse(n: int) -> tuple[str, str]:
    """Two texts of 2^n characters whose sums agree modulo 2^64 for any base."""
    a, b = "a", "b"
    for _ in range(n):
        a, b = a + b, b + a
    return a, b


def test_pieces_of_one_sum_are_refused() -> None:
    a, b = thue_morse(12)
    with pytest.raises(UnsupportedModel, match="cannot be told apart"):
        Pieces([a, b])


def test_text_of_a_pieces_sum_is_no_piece() -> None:
    a, b = thue_morse(12)
    assert [len(column) for column in Pieces([a, "x", b + "x"]).splits()] == [0, 0, 0]
    assert [len(column) for column in Pieces([a, "x", a + "x"]).splits()] == [1, 1, 1]
