"""Which labels are probably wrong: out-of-fold probabilities, ranked by confident learning.

Axes: N rows used, K classes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.analysis.rows import layer_of, take, usable_rows
from pipeline.errors import AnalysisError
from pipeline.evaluation.calibration import fit_temperature, softmax
from pipeline.evaluation.splits import fold_count, groups_of_column
from pipeline.selection.frames import frame

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

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
    cache: Any,
    *,
    layer: str = "penultimate",
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
    Every row gets probabilities from a logistic head fitted on the other folds, divided by a temperature
    (Guo et al. 2017). Lines are ranked by the probability of the given label. ``is_issue`` is confident learning's
    estimate of which labels are wrong (Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in
    dataset labels", JAIR 70, 2021), as cleanlab computes it, pruned by both of its rules.
    """
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        raise AnalysisError(
            "checking labels needs cleanlab, which is not installed: pip install 'embedding-pipeline[analysis]'"
        ) from None
    from pipeline.heads.logistic import LogisticSweep  # imports scikit-learn

    embeddings = layer_of(cache, layer)
    rows = usable_rows(cache, embeddings)
    labels = np.asarray(cache.labels)
    rows = rows[labels[rows] >= 0]
    used, y = np.unique(labels[rows], return_inverse=True)
    groups = groups_of_column(np.asarray(cache.columns["group"])[rows]) if "group" in cache.columns else None
    what = "rows" if groups is None else "groups"
    possible = fold_count(y, folds, groups) if len(used) > 1 else 0
    if possible < 2:
        raise AnalysisError(
            f"expected at least 2 classes, and one with 2 labelled {what}, in {cache.path}, found {len(used)} classes "
            f"on {len(rows)} rows: label more images"
        )
    if possible < folds:
        say(f"{possible} folds instead of {folds}: there are {possible} {what} to hold out")
    names = np.asarray(cache.label_names, dtype=object)[used]
    head = LogisticSweep(Cs=tuple(Cs), cv=possible, tol=1e-3, scoring="log_loss", random_state=seed)
    head.fit(take(embeddings, rows), y, groups)
    checked = np.isfinite(head.oof_scores_).all(axis=1)
    if not checked.all():
        alone = sorted(set(names[y[~checked]]))
        say(
            f"not checked: {int((~checked).sum())} rows that no fold can hold out, since a class has no other {what} "
            f"({', '.join(alone[:5])}{', …' if len(alone) > 5 else ''})"
        )
    scores, y, rows = head.oof_scores_[checked], y[checked], rows[checked]
    probabilities = softmax(scores / fit_temperature(scores, y))
    quality = get_label_quality_scores(y, probabilities, method="self_confidence")
    with warnings.catch_warnings():
        # A class of a single row has none left here, and may be suggested all the same.
        warnings.filterwarnings("ignore", "May not flag all label issues", UserWarning)
        issue = find_label_issues(y, probabilities, filter_by="both", n_jobs=1)
    order = np.lexsort((rows, quality))
    table = frame(
        {
            "key": cache.keys[rows[order]],
            "given": names[y[order]],
            "suggested": names[probabilities.argmax(axis=1)[order]],
            "quality": quality[order],
            "is_issue": issue[order],
        }
    )
    return LabelCheck(table, rows[order], float((probabilities.argmax(axis=1) == y).mean()), head.C_)
