"""Stop strings over every way that text may be cut into pieces, against a search in the whole text."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from treadle.inference.text import OutputText, StopStrings

TEXT = st.text(alphabet="abc\n", max_size=40)
STOPS = st.lists(st.text(alphabet="abc\n", min_size=1, max_size=5), max_size=4).map(tuple)


def pieces_of(text, cuts):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def first_complete(text, stops):
    """The stop that comes true first as the text grows letter by letter: (length of text then, start, stop)."""
    found = [(text.index(stop) + len(stop), text.index(stop), -len(stop), stop) for stop in stops if stop in text]
    return min(found) if found else None


@given(text=TEXT, stops=STOPS, cuts=st.lists(st.integers(0, 40), max_size=10), include=st.booleans())
def test_no_part_of_a_stop_string_is_shown(text, stops, cuts, include):
    watcher = StopStrings(stops, include)
    shown, stop, seen = "", None, 0
    for piece in pieces_of(text, cuts):
        seen += len(piece)
        grown, stop = watcher.push(piece)
        shown += grown
        if stop is not None:
            break
        # what is held back begins a stop string; everything else is out
        held = text[len(shown) : seen]
        assert text[:seen] == shown + held
        assert held == "" or any(s.startswith(held) and s != held for s in stops)
        assert not any(s in shown for s in stops)
    if stop is None:
        assert not any(s in text for s in stops)
        assert shown + watcher.finish() == text
        return
    part = text[:seen]
    at = min(part.index(s) for s in stops if s in part)
    longest = max((s for s in stops if part.startswith(s, at)), key=len)
    assert (stop, shown) == (longest, part[: at + (len(stop) if include else 0)])


@given(text=TEXT, stops=STOPS)
def test_letter_by_letter_the_first_to_come_true_wins(text, stops):
    watcher = StopStrings(stops, include=False)
    shown = ""
    expected = first_complete(text, stops)
    for i, letter in enumerate(text, start=1):
        grown, stop = watcher.push(letter)
        shown += grown
        if stop is not None:
            assert expected is not None
            assert (i, shown) == (expected[0], text[: expected[1]])
            return
    assert expected is None


class Spelled:
    """Token i is the i-th text; `rest` comes out at the end, as an unfinished character would."""

    def __init__(self, texts, rest=""):
        self.texts, self.rest = texts, rest

    def push(self, token_id):
        return self.texts[token_id]

    def finish(self):
        return self.rest


def test_a_stop_string_within_min_tokens_does_not_count():
    output = OutputText(Spelled(["x", "END", "y", "EN", "D"]), ("END",), False, min_tokens=2)
    assert [output.push(i) for i in range(5)] == [None, None, None, None, "END"]
    assert output.text == "xENDy"


def test_held_back_text_appears_at_the_end():
    output = OutputText(Spelled(["a", "EN"]), ("END",), False, 0)
    assert (output.push(0), output.push(1), output.text) == (None, None, "a")
    assert (output.finish(), output.text) == (None, "aEN")


def test_the_detokenisers_rest_may_complete_a_stop_string():
    output = OutputText(Spelled(["a", "EN"], rest="D"), ("END",), False, 0)
    output.push(0), output.push(1)
    assert (output.finish(), output.text) == ("END", "a")
