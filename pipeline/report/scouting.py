"""The page of a comparison of networks: which is as good as the best, and what each costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.text import counted
from pipeline.report import plots
from pipeline.report.content import Content, number_cell, text_cell
from pipeline.report.page import write_page
from pipeline.scouting.comparison import AS_GOOD, BEST, DROPPED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.scouting.comparison import Line

_COLUMNS = [
    ("candidate", True),
    ("accuracy", False),
    ("minus the best", False),
    ("images/s", False),
    ("whole archive", False),
    ("cache", False),
    ("features", False),
    ("standing", True),
]


def write_scout_page(path: Path, lines: Sequence[Line], *, notes: Sequence[str], facts: Mapping[str, Any]) -> None:
    """Write the page.

    Parameters
    ----------
    path : Path
        The HTML file to write.
    lines : sequence of Line
        Every candidate, the best first.
    notes : sequence of str
        What was left out or dropped.
    facts : mapping of str to object
        What stands at the end of the page: images, settings, and the commands to go on with (``then``).
    """
    chosen, best = next(line for line in lines if line.recommended), lines[0]
    compared = [line for line in lines if line.standing != DROPPED]
    networks = len({line.network for line in lines})
    name = _names(lines)
    content = Content(
        lead=f"{counted(len(lines), 'candidate')} from {counted(networks, 'network')}, compared on "
        f"{best.rows} of {facts['images in all']} images in {facts['classes']} classes. {_verdict(lines, chosen)}",
        cards=_cards(chosen),
    )
    content.layout.append(
        [content.plot("accuracy", _accuracies(compared, name), "Accuracy", _HINT, 120 + 28 * len(compared))]
    )
    if networks > 1:
        content.layout.append([content.plot("cost", _costs(compared, name), "Accuracy and speed", _COST_HINT, 420)])
    content.tables.append(
        {
            "id": "candidates",
            "title": "Candidates",
            "hint": _HINT_OF_TABLE + (_ON_MORE if facts["images in all"] >= _MANY_TIMES * best.rows else ""),
            "columns": _COLUMNS,
            "rows": [_row(line) for line in lines],
        }
    )
    write_page(
        path,
        title=f"Take {chosen.candidate}",
        interval_note="Figures of the recommended candidate.",
        notes=notes,
        content=content,
        facts=[(name, str(value)) for name, value in facts.items()],
    )


def _verdict(lines: Sequence[Line], chosen: Line) -> str:
    """Say how the best candidate stands to the others, and what is recommended."""
    best, equals = lines[0], sum(line.standing == AS_GOOD for line in lines)
    if not equals:
        return f"{best.candidate} is better than every other, and is recommended."
    others = f"{equals} of the others cannot be distinguished from the best, {best.candidate}."
    return f"{others} {'It' if chosen is best else chosen.candidate} is recommended, as the cheapest of them."


_HINT = (
    "Of a logistic head on images that its folds held out, with 95 % intervals. Orange: recommended. Intervals of "
    "single candidates may overlap where the difference, measured in pairs, is clear."
)
_HINT_OF_TABLE = "Differences to the best are measured on the same images, resampled in pairs. Click a heading to sort."
_ON_MORE = (
    " Candidates with many features gain more from further images than those with few: before one with few is taken "
    "for all images, compare with more --rows."
)
_MANY_TIMES = 4
"""Images of the archive for each that was compared, from which on that is said (docs/results-heads.md, Scout)."""
_COST_HINT = "Up and to the right is better: more accurate, and more images per second on this machine."


def _cards(line: Line) -> list[dict[str, str]]:
    best = "the best" if line.standing == BEST else f"{line.difference_low:+.4f} to {line.difference_high:+.4f}"
    return [
        {
            "name": "Accuracy",
            "what": "share of images held out by the folds whose most probable class is the label",
            "value": f"{line.accuracy:.4f}",
            "interval": f"{line.low:.4f} to {line.high:.4f}",
        },
        {"name": "Minus the best", "what": "on the same images", "value": f"{line.difference:+.4f}", "interval": best},
        {
            "name": "Images per second",
            "what": "on this machine, while it was measured",
            "value": _speed(line.images_per_second),
            "interval": f"whole archive: {_duration(line.archive_seconds)}",
        },
        {
            "name": "Features",
            "what": "width of what the head takes",
            "value": str(line.width),
            "interval": f"cache: {_size(line.cache_bytes)}",
        },
    ]


def _accuracies(lines: Sequence[Line], name: Mapping[str, str]) -> plots.Figure:
    entries = [
        {
            "name": name[line.candidate],
            "note": f"{_speed(line.images_per_second)} images/s, {line.width} features, {line.standing}",
            "marked": line.recommended,
            "value": line.accuracy,
            "low": line.low,
            "high": line.high,
        }
        for line in lines
    ]
    return plots.share_figure(entries, "accuracy")


def _costs(lines: Sequence[Line], name: Mapping[str, str]) -> plots.Figure:
    return plots.cost_figure(
        [line.images_per_second for line in lines],
        [(line.accuracy, line.low, line.high) for line in lines],
        [name[line.candidate] for line in lines],
        [line.recommended for line in lines],
    )


def _names(lines: Sequence[Line]) -> dict[str, str]:
    """Return what each candidate is called in a figure: its layers alone where there is one network."""
    if len({line.network for line in lines}) > 1:
        return {line.candidate: line.candidate for line in lines}
    return {line.candidate: line.candidate.removeprefix(line.network).strip() or line.layers for line in lines}


def _row(line: Line) -> list[dict[str, Any]]:
    standing = f"{line.standing}, recommended" if line.recommended else line.standing
    if line.standing == DROPPED:
        standing = f"{standing}, on {line.rows} images"
    return [
        text_cell(line.candidate),
        number_cell(line.accuracy),
        number_cell(
            line.difference, f"{line.difference:+.4f} ({line.difference_low:+.4f} to {line.difference_high:+.4f})"
        ),
        number_cell(line.images_per_second, _speed(line.images_per_second)),
        number_cell(line.archive_seconds, _duration(line.archive_seconds)),
        number_cell(float(line.cache_bytes), _size(line.cache_bytes)),
        number_cell(line.width),
        text_cell(standing),
    ]


def _speed(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _duration(seconds: float) -> str:
    """Write a time in the unit that suits it.

    Examples
    --------
    >>> _duration(42.0), _duration(600.0), _duration(7200.0), _duration(float("nan"))
    ('42 s', '10 min', '2.0 h', '–')
    """
    if np.isnan(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    """Write a number of bytes in the unit that suits it.

    Examples
    --------
    >>> _size(5_000), _size(2_500_000), _size(7.2e9)
    ('5 kB', '2.5 MB', '7.2 GB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
