"""The part of a report about which classes are taken for which: matrices, the worst pairs, and their images.

Axes: N rows, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.confusions import confusion_groups, confusion_order, merged, worst_pairs
from pipeline.report import plots
from pipeline.report.content import link_cell, number_cell, picture, text_cell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.evaluation.confusions import Pair
    from pipeline.fitting.rows import Rows
    from pipeline.report.content import Content

MOST_CLASSES = 30
"""Classes of a matrix that can be read; of more, groups are drawn, and this many with the most errors."""
_OWN_ORDER = 12
"""Up to so many classes keep their own order, such as that of digits."""
_GROUPS = 15
_MOST_GROUPED = 1000
"""Classes that are grouped: the distances of all pairs are kept, 4 MB for so many."""
_PAIRS = 30
_PAIRS_SHOWN, _PICTURES_OF_PAIR = 6, 6


def confusion_plots(content: Content, rows: Rows, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Keep the confusion matrix, and above `MOST_CLASSES` classes first that of groups of classes.

    Returns
    -------
    list of dict
        The places of the figures.
    """
    confusion, names, split = results["confusion"], rows.class_names, results["held_out"]
    k = len(names)
    hint = f"Labels down, predictions across, on the {split} rows."
    if k <= MOST_CLASSES:
        order = np.arange(k) if k <= _OWN_ORDER else confusion_order(confusion)
        hint += "" if k <= _OWN_ORDER else " Classes that are taken for each other stand together."
        return [_matrix(content, "confusion", confusion, names, order, "Confusion matrix", hint)]
    worst = _most_errors(confusion, MOST_CLASSES)
    worst = worst[confusion_order(confusion[np.ix_(worst, worst)])]
    most = f"{hint} The {MOST_CLASSES} of {k} classes with the most errors; those that are confused stand together."
    return [
        _groups(content, confusion, names, hint),
        _matrix(
            content, "confusion", confusion, names, worst, "Confusion matrix of the classes with most errors", most
        ),
    ]


def _groups(content: Content, confusion: NDArray[Any], names: Sequence[str], hint: str) -> dict[str, Any]:
    """Keep the matrix of groups of classes, and the table that says which classes they hold."""
    k, grouped = len(names), np.arange(len(names))
    if k > _MOST_GROUPED:
        grouped = _most_errors(confusion, _MOST_GROUPED)
        hint += f" The {_MOST_GROUPED} of {k} classes with the most errors."
    own = confusion[np.ix_(grouped, grouped)]
    groups = confusion_groups(own, _GROUPS)
    counts, totals = merged(own, groups), confusion[grouped].sum(axis=1)
    largest = [grouped[members[totals[members].argmax()]] for members in groups]
    called = [
        names[first] if len(members) == 1 else f"{names[first]} + {len(members) - 1}"
        for first, members in zip(largest, groups, strict=True)
    ]
    content.tables.append(
        {
            "id": "class-groups",
            "title": "Groups of classes",
            "hint": "Classes that are taken for each other, together; a group is named after its largest class, with "
            "the number of the others. Rows within are those predicted as a class of the group. Click a heading to "
            "sort.",
            "columns": [("group", True), ("rows", False), ("recall", False), ("within", False), ("classes", True)],
            "rows": [
                [
                    text_cell(name),
                    number_cell(int(totals[members].sum())),
                    number_cell(_share(np.diag(own)[members].sum(), totals[members].sum())),
                    number_cell(_share(counts[number, number], totals[members].sum())),
                    text_cell(", ".join(names[i] for i in grouped[members])),
                ]
                for number, (name, members) in enumerate(zip(called, groups, strict=True))
            ],
        }
    )
    title = "Confusion matrix of groups"
    return _matrix(
        content, "confusion-groups", counts, called, np.arange(len(called)), title,
        f"{hint} {len(groups)} groups of the {k} classes, listed below; the diagonal holds rows that stay in theirs.",
    )  # fmt: skip


def _matrix(
    content: Content,
    name: str,
    confusion: NDArray[Any],
    names: Sequence[str],
    shown: NDArray[np.int64],
    title: str,
    hint: str,
) -> dict[str, Any]:
    figure = plots.confusion_figure(confusion, names, shown.tolist())
    return content.plot(name, figure, title, hint, int(np.clip(220 + 24 * len(shown), 420, 900)))


def add_pairs(content: Content, cache: Cache, rows: Rows, results: dict[str, Any]) -> None:
    """Add the table of the worst pairs of classes, with images of the first of them; nothing for two classes."""
    confusion, names, split = results["confusion"], rows.class_names, results["held_out"]
    pairs = worst_pairs(confusion, _PAIRS) if len(names) > 2 else []
    if not pairs:
        return
    shown = [_pair_gallery(cache, rows, results, pair, n) for n, pair in enumerate(pairs[:_PAIRS_SHOWN])]
    every = int(np.count_nonzero(confusion) - np.count_nonzero(np.diag(confusion)))
    more = f" The {len(pairs)} of {every} pairs with the most rows." if every > len(pairs) else ""
    content.tables.append(
        {
            "id": "pairs",
            "title": "Most confused pairs",
            "hint": f"On the {split} rows.{more} The first {len(shown)} lead to their images; predictions.csv has all "
            "rows. Click a heading to sort.",
            "columns": [
                *(("label", True), ("predicted", True), ("rows", False)),
                *(("share of the label", False), ("the other way round", False)),
            ],
            "rows": [_pair_row(confusion, names, pair, n) for n, pair in enumerate(pairs)],
        }
    )
    content.galleries += shown


def _pair_row(confusion: NDArray[Any], names: Sequence[str], pair: Pair, number: int) -> list[dict[str, Any]]:
    label, predicted = names[pair.label], names[pair.predicted]
    share = _share(pair.rows, confusion[pair.label].sum())
    return [
        link_cell(label, f"pair-{number}") if number < _PAIRS_SHOWN else text_cell(label),
        text_cell(predicted),
        number_cell(pair.rows),
        number_cell(share, f"{share:.1%}"),
        number_cell(pair.back),
    ]


def _pair_gallery(cache: Cache, rows: Rows, results: dict[str, Any], pair: Pair, number: int) -> dict[str, Any]:
    """Return images of a pair, those first of which the head is surest."""
    split = results["held_out"]
    at, probabilities = rows.of(split), results["predictions"][split]
    those = np.flatnonzero((rows.y[at] == pair.label) & (probabilities.argmax(axis=1) == pair.predicted))
    surest = those[np.argsort(-probabilities[those, pair.predicted], kind="stable")][:_PICTURES_OF_PAIR]
    label, predicted = rows.class_names[pair.label], rows.class_names[pair.predicted]
    few = f", the {len(surest)} surest" if len(surest) < pair.rows else ""
    return {
        "id": f"pair-{number}",
        "title": f"{label} predicted as {predicted}",
        "hint": f"{pair.rows} of the {split} rows{few}.",
        "pictures": [
            picture(cache, int(rows.index[at[i]]), label, predicted, f"{probabilities[i, pair.predicted]:.1%}")
            for i in surest
        ],
    }


def _most_errors(confusion: NDArray[Any], most: int) -> NDArray[np.int64]:
    """Return the classes with the most rows that are wrong, as label or as prediction, in their own order."""
    wrong = confusion.sum(axis=0) + confusion.sum(axis=1) - 2 * np.diag(confusion)
    return np.sort(np.argsort(-wrong, kind="stable")[:most])


def _share(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else float("nan")
