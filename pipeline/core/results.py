"""What a stage returns, as a terminal and a notebook show it."""

from __future__ import annotations

import html
import math
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import quote

from pipeline.core.text import valid_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

KEY = "key"


class Result(ABC):
    """A result of a stage, which prints as its main figures, with a link to its page in a notebook."""

    __slots__ = ()

    @abstractmethod
    def headlines(self) -> list[str]:
        """Return the main facts, one a line."""

    @abstractmethod
    def to_pandas(self) -> pd.DataFrame:
        """Return a data frame with one line per image."""

    @property
    def report(self) -> Path | None:
        """The page of the result; None where there is none."""
        return None

    def __repr__(self) -> str:
        return "\n".join(valid_text(self.headlines()))

    def _repr_html_(self) -> str:
        """Return the same for a notebook, with a table of the figures that were measured."""
        lines = [html.escape(line) for line in valid_text(self.headlines())]
        if self.report is not None:
            address = quote(os.fsencode(_from_here(self.report)), safe="/")
            lines.append(f'<a href="{html.escape(address)}" target="_blank">{html.escape(self.report.name)}</a>')
        return "<div>" + "<br>".join(lines) + _table(self._figures()) + "</div>"

    def _figures(self) -> dict[str, dict[str, Any]]:
        """Return figures by name, each with ``value``, ``low`` and ``high``."""
        return {}


def figures_of(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the figures of all held-out splits, as ``metrics.json`` holds them, by split and name."""
    return {
        f"{split} {name.replace('_', ' ')}": figure
        for split in ("test", "val")
        for name, figure in metrics.get(split, {}).items()
        if isinstance(figure, dict) and {"value", "low", "high"} <= figure.keys() and figure["value"] is not None
    }


def _table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    if not figures:
        return ""
    rows = [
        f"<tr><th>{html.escape(name)}</th>" + "".join(_cell(figure[key]) for key in ("value", "low", "high")) + "</tr>"
        for name, figure in figures.items()
    ]
    return "<table><tr><th></th><th>value</th><th>low</th><th>high</th></tr>" + "".join(rows) + "</table>"


def _cell(value: float | None) -> str:
    return "<td></td>" if value is None else f"<td>{value:.4f}</td>"


def _from_here(path: Path) -> str:
    """Return a path as a notebook links to it: from the folder that it runs in."""
    try:
        return Path(os.path.relpath(path)).as_posix()
    except ValueError:  # on another drive
        return path.as_posix()


def page_of(run_dir: Path, name: str) -> Path | None:
    """Return the path of a page in a run folder; None where it was not written."""
    return run_dir / name if (run_dir / name).is_file() else None


def read_predictions(table: Path | TextIO, *, numeric: bool) -> pd.DataFrame:
    r"""Return a table of predictions as a data frame.

    Parameters
    ----------
    table : Path or text file
        The CSV that a stage wrote.
    numeric : bool
        Whether the predictions are numbers.

    Returns
    -------
    DataFrame
        Indexed by ``key``. Names are text, as they were written; bytes that are not UTF-8 are shown as ``\xff``.
        Probabilities, and numeric predictions, are float64, missing where an image failed.
    """
    import pandas as pd  # takes a second

    found = pd.read_csv(table, dtype=object, keep_default_na=False, encoding_errors="surrogateescape")
    numbers = {"novelty", "low", "high", *(("label", "predicted") if numeric else ())}
    columns: dict[str, Any] = {}
    for name in found.columns:
        if name in numbers or name.startswith("p_"):
            columns[name] = [float(text) if text else math.nan for text in found[name]]
        else:
            columns[name] = valid_text(found[name])
    frame = pd.DataFrame(columns)
    frame.columns = pd.Index(valid_text(list(frame.columns)))
    return frame.set_index(KEY)
