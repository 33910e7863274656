"""The matrix of `treadle parity`, read strictly from matrix.toml: families, cases, tolerances."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from treadle.errors import InvalidFile, InvalidRequest

MATRIX: Final = Path(__file__).with_name("matrix.toml")
NUMERICS: Final = ("exact", "fast", "bf16")


class Rounding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A figure for each way of rounding: of fast numerics by how weights are stored, and of bf16 numerics."""

    fast_bf16: float
    fast_q8_0: float
    bf16: float

    def of(self, numerics: str, weights: str) -> float:
        if numerics == "bf16":
            return self.bf16
        return self.fast_q8_0 if weights == "q8_0" else self.fast_bf16


class Defaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seeds, prompts and tolerances of every case; explained in matrix.toml."""

    seed: int
    lengths: tuple[int, ...]
    chunks: tuple[int, ...]
    rel_err: float
    noise: Rounding
    margin: float
    decided: float
    top1: float


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One config of a family. `class_name`: the transformers class that is the oracle; `numerics`: it is run on."""

    family: str
    name: str
    class_name: str
    config: dict[str, Any]
    rel_err: float
    numerics: tuple[str, ...] = NUMERICS
    reason: str = ""


class Matrix(msgspec.Struct, frozen=True):
    defaults: Defaults
    cases: tuple[Case, ...]

    def families(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(case.family for case in self.cases))

    def select(self, family: str | None, case: str | None) -> tuple[Case, ...]:
        """The cases of that family and name. Raises InvalidRequest where there is none."""
        found = tuple(c for c in self.cases if family in (None, c.family) and case in (None, c.name))
        if not found:
            if family is not None and family not in self.families():
                raise InvalidRequest(f"family {family!r} is not in the matrix; known: {', '.join(self.families())}")
            known = dict.fromkeys(c.name for c in self.cases if family in (None, c.family))
            raise InvalidRequest(f"case {case!r} is not in the matrix; known: {', '.join(known)}")
        return found


class _CaseEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    config: dict[str, Any] = {}
    null: tuple[str, ...] = ()
    rel_err: float | None = None
    numerics: tuple[str, ...] | None = None
    reason: str = ""


class _FamilyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    class_name: str = msgspec.field(name="class")
    base: dict[str, Any] = {}
    case: tuple[_CaseEntry, ...] = ()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    defaults: Defaults
    family: dict[str, _FamilyEntry]


def read_matrix(path: Path = MATRIX) -> Matrix:
    """Raises InvalidFile naming what is wrong in the file."""
    try:
        file = msgspec.toml.decode(path.read_bytes(), type=_File)
    except msgspec.DecodeError as error:
        raise InvalidFile(f"{path.name}: {error}") from None
    cases = tuple(
        _case(name, family, entry, file.defaults, path.name)
        for name, family in file.family.items()
        for entry in family.case
    )
    names = [(case.family, case.name) for case in cases]
    for family_name, case_name in names:
        if names.count((family_name, case_name)) > 1:
            raise InvalidFile(f"{path.name}: family {family_name}: two cases are named {case_name!r}")
    for name, family in file.family.items():
        if not family.case:
            raise InvalidFile(f"{path.name}: family {name} has no case")
    return Matrix(file.defaults, cases)


def _case(name: str, family: _FamilyEntry, entry: _CaseEntry, defaults: Defaults, where: str) -> Case:
    if (entry.rel_err is None and entry.numerics is None) != (not entry.reason):
        raise InvalidFile(f"{where}: {name}/{entry.name}: rel_err or numerics, and reason go together")
    numerics = NUMERICS if entry.numerics is None else entry.numerics
    if not numerics or any(each not in NUMERICS for each in numerics):
        raise InvalidFile(f"{where}: {name}/{entry.name}: numerics: expected some of {', '.join(NUMERICS)}")
    return Case(
        family=name,
        name=entry.name,
        class_name=family.class_name,
        config={**family.base, **entry.config, **dict.fromkeys(entry.null)},
        rel_err=defaults.rel_err if entry.rel_err is None else entry.rel_err,
        numerics=numerics,
        reason=entry.reason,
    )
