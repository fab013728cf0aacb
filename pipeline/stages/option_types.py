"""Types of options that click does not have. Each also takes the Python value that it makes of a text."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable
from typing import Any, Literal

import click

SEED = click.IntRange(0, 2**32 - 1)
"""The range that every random number generator accepts."""


EMPTY_TOO = click.types.StringParamType()
"""Text that may be empty on the command line too, such as the value of a column in rows without one."""


class CountOrAuto(click.IntRange):
    """A number from 1 to a maximum, or ``auto``."""

    name = "number or auto"

    def __init__(self, most: int) -> None:
        super().__init__(1, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or ``"auto"``."""
        return value if value == "auto" else super().convert(value, param, ctx)


class Number(click.FloatRange):
    """A number in a range; neither infinite nor NaN, which passes every comparison with the ends of a range."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"expected a number, got {value}: give a finite one", param, ctx)
        return number


class RateOrAuto(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A learning rate, or auto."""

    name = "RATE|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | Literal["auto"]:
        """Return the rate, or ``"auto"``."""
        if value == "auto":
            return "auto"
        try:
            rate = float(value)
        except (TypeError, ValueError):
            rate = -1.0
        if not 0 < rate < float("inf"):
            self.fail(f"expected a positive number or auto, found {value!r}", param, ctx)
        return rate


class ShareOrWord(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A number from 0 to 1, auto or none."""

    name = "auto|SHARE|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """Return the number, or the word."""
        if value in ("auto", "none"):
            return str(value)
        try:
            share = float(value)
        except (TypeError, ValueError):
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"expected a number from 0 to 1, auto or none, found {value!r}", param, ctx)
        return share


class Cosine(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A cosine, or ``default`` for the threshold of near duplicates."""

    name = "COSINE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the cosine."""
        if value == "default":
            from pipeline.evaluation.near_duplicates import DEFAULT_THRESHOLD  # keeps NumPy out of --help

            return DEFAULT_THRESHOLD
        try:
            cosine = float(value)
        except (TypeError, ValueError):
            cosine = math.nan
        if not math.isfinite(cosine):
            self.fail(f"expected a cosine such as 0.98, got {value!r}: give a number, or leave it out", param, ctx)
        return cosine


class Counts(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Whole numbers, in a text separated by commas."""

    name = "N,N..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the numbers."""
        parts: Any = value.split(",") if isinstance(value, str) else value
        try:
            if not isinstance(parts, Iterable):
                parts = (parts,)
            found = [(part, int(part)) for part in parts]
            if any(not isinstance(part, str) and part != number for part, number in found):
                raise ValueError(value)
        except (TypeError, ValueError):
            self.fail(
                f"expected numbers such as 1,2,5,10, got {value!r}: separate whole numbers with commas", param, ctx
            )
        return tuple(number for _, number in found)


class Names(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Names, in a text separated by commas."""

    name = "NAME,NAME..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the names, each once."""
        parts: Any = value.split(",") if isinstance(value, str) else value
        names = tuple(parts) if isinstance(parts, Iterable) else (parts,)
        if not all(isinstance(name, str) and name.strip() for name in names):
            self.fail(f"expected names such as a,b,c, got {value!r}: separate names with commas", param, ctx)
        return tuple(dict.fromkeys(name.strip() for name in names))


class Assignment(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """NAME=VALUE, the value as a Python literal where it is one, as text otherwise."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Return name and value."""
        if isinstance(value, tuple) and len(value) == 2:  # from Python
            return str(value[0]), value[1]
        name, equals, text = str(value).partition("=")
        if not (name.strip() and equals):
            self.fail(f"expected NAME=VALUE, got {value!r}: write it like --set n_neighbors=5", param, ctx)
        try:
            return name.strip(), ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return name.strip(), text
