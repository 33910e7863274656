"""A Jinja environment for templates from strangers: no way out, and a budget for time, steps and characters.

Jinja's ImmutableSandboxedEnvironment keeps a template away from Python's internals; it does not keep one from looping
for ever or from building a string of a terabyte. So every loop step, call, filter, operator and piece of output pays
from a budget before it is carried out, which stops a runaway template within a fraction of a second.
Python itself cannot be interrupted inside one C call; each is kept short by refusing what could blow it up
(widths, repetitions, large powers) rather than by waiting for it.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, NoReturn, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Namespace, _PassArg
from jinja2.visitor import NodeTransformer

__all__ = ["Budget", "BudgetSpent", "TemplateEnvironment"]

BASE_BUDGET = 32_000_000  # characters and steps
BUDGET_PER_INPUT = 64  # more of them for each character of input
MAX_CPU_SECONDS = 0.5
MAX_INTEGER_BITS = 1024
REMOVED_FILTERS = frozenset({"center", "filesizeformat", "pprint", "random", "slice", "batch", "striptags", "sum"})
REMOVED_FILTERS |= {"urlize", "wordwrap", "xmlattr"}
REMOVED_GLOBALS = ("lipsum", "cycler", "joiner")
# methods and filters whose result can be longer than all they were given, by their integer and string arguments
GROWING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "replace", "join", "indent", "tojson"})
WIDE_PERCENT = re.compile(r"%[^a-zA-Z%]*(\*|\d{4})")  # a field width of four digits, or one that is an argument
WIDE_BRACES = re.compile(r"\{[^{}]*(\{|\d{4})")


class BudgetSpent(SecurityError):
    """The template used up its time, steps or characters."""


class Budget:
    """What one rendering may still spend. Charging raises BudgetSpent when nothing is left."""

    def __init__(self, amount: int, seconds: float = MAX_CPU_SECONDS) -> None:
        self._left = amount
        self._deadline = time.thread_time() + seconds
        self._until_clock = 0

    def charge(self, amount: int) -> None:
        self._left -= amount
        self._until_clock -= 1
        if self._left < 0:
            raise BudgetSpent("the template builds too much text or takes too many steps")
        if self._until_clock < 0:
            self._until_clock = 256
            if time.thread_time() > self._deadline:
                raise BudgetSpent("the template takes too long")

    def charge_values(self, *values: object, times: int = 1) -> None:
        """Pay for the characters and items in ``values``, nested ones included, each time it is reached."""
        stack = list(values)
        while stack:
            value = stack.pop()
            if isinstance(value, str):
                self.charge((len(value) + 1) * times)
                continue
            self.charge(times)
            if isinstance(value, dict):
                stack.extend(value.keys())
                stack.extend(value.values())
            elif isinstance(value, list | tuple | set | frozenset):
                stack.extend(value)
            elif isinstance(value, Namespace):
                stack.append(value._Namespace__attrs)


class _Rewriter(NodeTransformer):
    """Sends loops, ``~`` and comparisons of containers through filters that pay for them."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 - named by Jinja
        self.generic_visit(node)
        node.iter = _filter(node.iter, "_steps")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "_concat")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:  # noqa: N802
        self.generic_visit(node)
        operands = [node.expr, *(operand.expr for operand in node.ops)]
        if sum(not isinstance(operand, nodes.Const) for operand in operands) > 1:
            node.expr = _filter(node.expr, "_paid")
            for operand in node.ops:
                operand.expr = _filter(operand.expr, "_paid")
        return node


def _filter(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's words for training; for rendering it is only a scope."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Whitespace, tags and functions as in transformers' chat templates. ``budget`` is set anew for each rendering."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.budget = Budget(BASE_BUDGET)
        self.finalize = self._finalize
        self.filters = {name: self._paying(name, f) for name, f in FILTERS.items() if name not in REMOVED_FILTERS}
        self.filters |= {"tojson": self._paying("tojson", _to_json), "_concat": self._join_values}
        self.filters |= {"_steps": self._steps, "_paid": self._paid}
        self.tests = {name: self._paying(name, test) for name, test in TESTS.items()}
        for name in REMOVED_GLOBALS:
            del self.globals[name]
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Rewriter().visit(super()._parse(source, name, filename))
        return tree

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call written in the template: of a macro, a global, or a method of a string, list or dict."""
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            self._pay_for(function.__name__, (owner, *args, *kwargs.values()))
        elif isinstance(owner, list | tuple) and function.__name__ in ("index", "count"):
            self.budget.charge_values(owner, *args)
        else:
            self.budget.charge(1 + (len(owner) if isinstance(owner, dict | list | tuple) else 0))
        return super().call(context, function, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        formatter = super().wrap_str_format(value)
        if formatter is None:
            return None

        def format_paid(*args: Any, **kwargs: Any) -> str:
            _refuse_width(WIDE_BRACES, value.__self__)
            self.budget.charge_values(value.__self__, *args, kwargs)
            return formatter(*args, **kwargs)

        return format_paid

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _refuse_width(WIDE_PERCENT, left)
            self.budget.charge_values(left, right)
        elif isinstance(left, int) and isinstance(right, int):
            _refuse_large(operator, left, right)
        elif operator == "*":
            sized, times = (left, right) if isinstance(right, int) else (right, left)
            self.budget.charge(len(sized) * max(times, 1) if isinstance(times, int) and _sized(sized) else 1)
        else:
            self.budget.charge(1 + sum(len(side) for side in (left, right) if _sized(side)))
        return super().call_binop(context, operator, left, right)

    def _paying(self, name: str, function: Any) -> Callable[..., Any]:
        """A filter or test that pays for its arguments first, and for each item of a lazy result."""
        first = 1 if _PassArg.from_obj(function) is not None else 0

        @functools.wraps(function)
        def paying(*args: Any, **kwargs: Any) -> Any:
            if name in GROWING:  # the items of a lazy argument are paid for, not only their number
                args = tuple(list(arg) if isinstance(arg, Iterator) else arg for arg in args)
            self._pay_for(name, (*args[first:], *kwargs.values()))
            result = function(*args, **kwargs)
            return self._steps(result) if isinstance(result, Iterator) else result

        return paying

    def _pay_for(self, name: str, values: tuple[Any, ...]) -> None:
        if name == "format":
            _refuse_width(WIDE_PERCENT, str(values[0]))
        growth = 1
        if name in GROWING:
            growth += sum(abs(value) if isinstance(value, int) else len(value) for value in values[1:] if _grows(value))
        self.budget.charge_values(*values, times=growth)

    def _finalize(self, value: Any) -> Any:
        """Every printed value."""
        if not isinstance(value, str):
            self.budget.charge_values(value)
        return value

    def concat(self, pieces: Iterable[str]) -> str:
        """Every place where output is put together: the whole text, macros, set blocks."""
        paid: list[str] = []
        for piece in pieces:
            self.budget.charge(len(piece) + 1)
            paid.append(piece)
        return "".join(paid)

    def _join_values(self, values: list[Any]) -> str:
        self.budget.charge_values(values)
        return "".join(map(str, values))

    def _steps(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.budget.charge(1)
            yield item

    def _paid(self, value: Any) -> Any:
        if not isinstance(value, int | float | Undefined | None):
            self.budget.charge_values(value)
        return value


def _sized(value: Any) -> bool:
    return isinstance(value, str | list | tuple)


def _grows(value: Any) -> bool:
    return isinstance(value, int | str)


def _refuse_width(pattern: re.Pattern[str], text: str) -> None:
    if pattern.search(text):
        raise SecurityError(f"a format with a large or variable width: {text[:80]!r}")


def _refuse_large(operator: str, left: int, right: int) -> None:
    bits = left.bit_length() * max(right, 1) if operator == "**" else left.bit_length() + right.bit_length()
    if operator in ("*", "**") and bits > MAX_INTEGER_BITS:
        raise SecurityError(f"{operator} makes an integer of more than {MAX_INTEGER_BITS} bits")


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    _refuse_width(WIDE_PERCENT, form)
    return datetime.now().strftime(form[:256])


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter this does not escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
