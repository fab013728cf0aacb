"""The report: the results of a fit as one self-contained HTML page.

The script that draws and the images are inside the page, and a content security policy forbids the page to
fetch anything. Every text from outside (class names, file names) is escaped by the template.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.text import counted
from pipeline.report.classification import classes_content
from pipeline.report.groups import add_groups
from pipeline.report.inputs import add_inputs
from pipeline.report.multilabel import labels_content
from pipeline.report.regression import numbers_content
from pipeline.report.rendering import script_json, templates, unread_note
from pipeline.report.trust import add_trust

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from pipeline.cache import Cache
    from pipeline.fitting.rows import Rows
    from pipeline.report.content import Content

_NAMED_TARGETS = 3
"""Targets that the first sentence of their page names."""

_CONTENT = {"classification": classes_content, "multilabel": labels_content, "regression": numbers_content}


def write_report(
    path: str | os.PathLike[str],
    *,
    cache: Cache,
    rows: Rows,
    results: dict[str, Any],
    run: dict[str, Any],
    content: Content | None = None,
) -> None:
    """Write the page of a run.

    Parameters
    ----------
    path : str or Path
        The HTML file to write.
    cache : Cache
        For keys and images.
    rows : Rows
        The rows used, from ``pipeline.fitting.rows``.
    results : dict
        Metrics, predictions, sweep and curves of the fit.
    run : dict
        What ``run.json`` holds.
    content : Content, optional
        What the page shows; None for what suits the task.
    """
    split = results["held_out"]
    measured = results["metrics"][split]["rows"]
    content = content or _CONTENT[rows.task](cache, rows, results, run)
    if "trust" in results:
        add_trust(content, results["trust"], split)
    add_groups(content, results, rows.task)
    add_inputs(content, results)
    content.advice = results.get("what_would_help", [])
    what = f"{run['target']}: " if run["settings"].get("target") else ""
    write_page(
        path,
        title=f"{what}{run['head']} head on {Path(run['cache']['path']).name}",
        interval_note=(
            f"Under each figure its 95 % interval over the {counted(measured, f'{split} row')}"
            f"{', whole groups resampled together' if rows.groups is not None else ''}."
        ),
        notes=[*run["notes"], *content.remarks, *_unread(content)],
        content=content,
        facts=_facts(run),
    )


def write_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    interval_note: str,
    notes: Sequence[str],
    content: Content,
    facts: Sequence[tuple[str, str]],
) -> None:
    """Write a page of cards, notes, figures, tables and facts.

    Parameters
    ----------
    path : str or Path
        The HTML file to write.
    title : str
    interval_note : str
        What stands below the cards.
    notes : sequence of str
        What the reader has to know.
    content : Content
    facts : sequence of (str, str)
        Names and values at the end of the page.
    """
    page = templates().get_template("page.html.j2")
    figures = script_json(content.figures)
    _write(
        path,
        page.render(
            title=title,
            interval_note=interval_note,
            lead=content.lead,
            notes=notes,
            content=content,
            figures=figures,
            facts=facts,
        ),
    )


def write_summary(path: str | os.PathLike[str], *, run: dict[str, Any], results: Sequence[Any]) -> None:
    """Write the page that leads to the runs of several targets.

    Parameters
    ----------
    path : str or Path
        The HTML file to write, in the folder of all runs.
    run : dict
        What its ``run.json`` holds.
    results : sequence of FitResult
        One for each run.
    """
    runs = [
        {**entry, "notes": result.notes, "link": f"{entry['folder']}/report.html"}
        for entry, result in zip(run["runs"], results, strict=True)
    ]
    name = Path(run["cache"]["path"]).name
    page = templates().get_template("summary.html.j2")
    _write(path, page.render(title=f"{counted(len(runs), 'target')} on {name}", lead=_lead_of_runs(run), runs=runs))


def _lead_of_runs(run: dict[str, Any]) -> str:
    """Say what was measured of each target, of the first few where there are many."""
    lines = [f"{entry['target']}, {entry['headlines'][0]}" for entry in run["runs"][:_NAMED_TARGETS]]
    more = len(run["runs"]) - len(lines)
    return f"{'; '.join(lines)}{f'; and {more} more below' if more > 0 else ''}."


def _write(path: str | os.PathLike[str], page: str) -> None:
    Path(path).write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


def _unread(content: Content) -> list[str]:
    """Return a note where images are not shown, since their files are gone or no longer readable."""
    images = [item["image"] for gallery in content.galleries for item in gallery["pictures"]]
    note = unread_note(images.count(None), len(images))
    return [note] if note else []


def _facts(run: dict[str, Any]) -> list[tuple[str, str]]:
    cache = run["cache"]
    spec = cache["spec"]
    facts = [
        ("cache", cache["path"]),
        ("fingerprint", cache["fingerprint"]),
        ("target", f"{run['target']} ({run['task']})"),
        ("layer", run["layer"]),
        *((name, _text(value)) for name, value in spec.items()),
        ("split", "from the source" if run["split"] == "column" else "stratified hold-out"),
        ("settings", _text({k: v for k, v in run["settings"].items() if v not in (None, {}, [], ())})),
        ("chosen", _text(run["chosen"])),
        ("versions", _text(run["versions"])),
        ("cache written by", _text(cache["versions"])),
    ]
    return [(name.replace("_", " "), value) for name, value in facts]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(_text(inner) for inner in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
