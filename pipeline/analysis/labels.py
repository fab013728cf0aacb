"""Which labels are probably wrong: out-of-fold probabilities, ranked by confident learning.

Axes: N rows used, K classes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.analysis.rows import take, usable_rows
from pipeline.core.optional import ANALYSIS_EXTRA, optional_part
from pipeline.core.spec import PENULTIMATE
from pipeline.errors import AnalysisError
from pipeline.evaluation.calibration import fit_temperature, softmax
from pipeline.evaluation.splits import fold_count, groups_of_column
from pipeline.heads.logistic import LogisticSweep
from pipeline.selection.frames import frame

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.cache import Cache

DEFAULT_CS = (0.001, 0.01, 0.1)
"""One value per decade: the ranking hardly depends on C, and a larger C only takes longer."""


@dataclass(frozen=True)
class LabelCheck:
    """The result of checking labels.

    Attributes
    ----------
    table : pandas.DataFrame
        ``key``, ``given``, ``suggested``, ``quality`` (out-of-fold probability of the given label), ``is_issue``;
        most doubtful first.
    rows : (N,) int64
        The cache row of each line.
    accuracy : float
        Share of rows whose given label is the most probable one.
    C : float
        The value of C that was chosen.
    """

    table: Any
    rows: NDArray[np.int64]
    accuracy: float
    C: float


def check_labels(
    cache: Cache,
    *,
    layer: str = PENULTIMATE,
    Cs: Sequence[float] = DEFAULT_CS,
    folds: int = 5,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> LabelCheck:
    """Rank the labels of a cache, most doubtful first.

    Parameters
    ----------
    cache : Cache
        An open cache. Rows of every split take part.
    layer : str
        Which layer.
    Cs : sequence of float
        Values of C to choose from.
    folds : int
        Folds; groups are kept together where there is a ``group`` column.
    seed : int
        Of the folds.
    say : callable
        Called with each line for the user.

    Raises
    ------
    AnalysisError
        cleanlab is missing, or there are not two classes, one of them with two rows (or groups).

    Notes
    -----
    Every row gets probabilities from a logistic head fitted on the other folds, divided by a temperature. ``is_issue``
    is confident learning's estimate of which labels are wrong (Northcutt, Jiang and Chuang, JAIR 70, 2021), as
    cleanlab computes it, pruned by both of its rules.
    """
    find_label_issues, get_quality = _cleanlab()
    embeddings = cache.layer(layer)
    rows = usable_rows(cache, embeddings)
    labels = np.asarray(cache.labels)
    rows = rows[labels[rows] >= 0]
    used, y = np.unique(labels[rows], return_inverse=True)
    names = np.asarray(cache.label_names, dtype=object)[used]
    groups = groups_of_column(np.asarray(cache.columns["group"])[rows]) if "group" in cache.columns else None
    possible = _possible_folds(cache, y, groups, folds, say)
    head = _sweep_of(Cs, possible, seed).fit(take(embeddings, rows), y, groups)
    checked = _checked_rows(head.oof_scores_, names[y], "rows" if groups is None else "groups", say)
    scores, y, rows = head.oof_scores_[checked], y[checked], rows[checked]
    probabilities = softmax(scores / fit_temperature(scores, y))
    suggested = probabilities.argmax(axis=1)
    quality = get_quality(y, probabilities, method="self_confidence")
    issue = _issues(find_label_issues, y, probabilities)
    columns = {"key": cache.keys[rows], "given": names[y], "suggested": names[suggested]}
    columns |= {"quality": quality, "is_issue": issue}
    order = np.lexsort((rows, quality))
    table = frame({name: values[order] for name, values in columns.items()})
    return LabelCheck(table, rows[order], float((suggested == y).mean()), head.C_)


def _issues(
    find_label_issues: Callable[..., Any], y: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return which labels confident learning takes for wrong."""
    with warnings.catch_warnings():
        # A class of a single row has none left here, and may be suggested all the same.
        warnings.filterwarnings("ignore", "May not flag all label issues", UserWarning)
        return np.asarray(find_label_issues(y, probabilities, filter_by="both", n_jobs=1))


def _cleanlab() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return cleanlab's two functions."""
    with optional_part("checking labels needs cleanlab", ANALYSIS_EXTRA, AnalysisError):
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    return find_label_issues, get_label_quality_scores


def _sweep_of(Cs: Sequence[float], folds: int, seed: int) -> LogisticSweep:
    return LogisticSweep(Cs=tuple(Cs), cv=folds, tol=1e-3, scoring="log_loss", random_state=seed)


def _possible_folds(
    cache: Cache, y: NDArray[np.int64], groups: NDArray[Any] | None, folds: int, say: Callable[[str], None]
) -> int:
    """Return the number of folds that the classes allow; raise where nothing could be held out."""
    what = "rows" if groups is None else "groups"
    classes = len(np.unique(y))
    possible = fold_count(y, folds, groups) if classes > 1 else 0
    if possible < 2:
        raise AnalysisError(
            f"expected at least 2 classes, and one with 2 labelled {what}, in {cache.path}, found {classes} classes "
            f"on {len(y)} rows: label more images"
        )
    if possible < folds:
        say(f"{possible} folds instead of {folds}: there are {possible} {what} to hold out")
    return possible


def _checked_rows(
    scores: NDArray[np.float64], given: NDArray[np.object_], what: str, say: Callable[[str], None]
) -> NDArray[np.bool_]:
    """Return which rows were held out by a fold, and name the classes of the others."""
    checked = np.asarray(np.isfinite(scores).all(axis=1))
    if not checked.all():
        alone = sorted(set(given[~checked]))
        say(
            f"not checked: {int((~checked).sum())} rows that no fold can hold out, since a class has no other {what} "
            f"({', '.join(alone[:5])}{', …' if len(alone) > 5 else ''})"
        )
    return checked
