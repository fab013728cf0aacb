"""Limits given as a number or as a share: ``20`` or ``5%``."""

from __future__ import annotations

import math

from pipeline.errors import PipelineError


def count_limit(text: str | None, total: int, option: str) -> float:
    """Return how many of ``total`` an option such as ``--max-failures`` allows; no text sets no limit.

    Raises
    ------
    PipelineError
        The text is neither a number nor a percentage.

    Examples
    --------
    >>> count_limit("20", 1000, "--most"), count_limit("5%", 1000, "--most"), count_limit(None, 1000, "--most")
    (20.0, 50.0, inf)
    """
    if text is None:
        return math.inf
    number, percent = (text[:-1], True) if text.endswith("%") else (text, False)
    if not (number.isascii() and number.isdecimal()) or (percent and int(number) > 100):
        raise PipelineError(f"expected {option} as a number or a percentage such as 5%, found {text!r}: correct it")
    return total * int(number) / 100 if percent else float(number)
