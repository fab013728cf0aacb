"""Which labels are probably wrong: out-of-fold probabilities, ranked by confident learning.

Axes: N rows used, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.analysis.rows import layer_of, take, usable_rows
from pipeline.errors import AnalysisError
from pipeline.selection.frames import frame

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

DEFAULT_CS = (0.001, 0.01, 0.1)
"""One value a decade: which rows look wrong hardly depends on C, and a larger one only takes longer."""


@dataclass(frozen=True)
class LabelCheck:
    """What a check of the labels found.

    Attributes
    ----------
    table : pandas.DataFrame
        ``key``, ``given``, ``suggested``, ``quality`` (probability of the given label, from heads that have not seen
        the row), ``is_issue``; most doubtful first.
    rows : (N,) int64
        The row of the cache of each line.
    accuracy : float
        Share of rows whose given label is the most probable one.
    C : float
        The strength taken.
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
        An open cache. Rows of every split take part; the split is of no matter here.
    layer : str
        Which layer.
    Cs : sequence of float
        Values of C to choose from.
    folds : int
        Folds; groups are kept together where there is a ``group`` column.
    seed : int
        Of the folds.
    say : callable
        Takes lines for the user.

    Raises
    ------
    AnalysisError
        cleanlab is missing, or there are not two classes of two rows each.

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
    from pipeline.evaluate import fit_temperature, groups_of_column, largest_fold_count, softmax
    from pipeline.heads.logistic import LogisticSweep

    embeddings = layer_of(cache, layer)
    rows = usable_rows(cache, embeddings)
    labels = np.asarray(cache.labels)
    rows = rows[labels[rows] >= 0]
    used, y, counts = np.unique(labels[rows], return_inverse=True, return_counts=True)
    groups = groups_of_column(np.asarray(cache.columns["group"])[rows]) if "group" in cache.columns else None
    if len(used) < 2 or largest_fold_count(y, groups) < 2:
        what = "rows" if groups is None else "groups"
        raise AnalysisError(
            f"expected at least 2 classes with 2 labelled {what} each in {cache.path}, found "
            f"{len(used)} classes, the smallest of {counts.min() if len(counts) else 0} rows: label more images"
        )
    possible = min(folds, largest_fold_count(y, groups))
    if possible < folds:
        say(f"{possible} folds instead of {folds}: the smallest class has no more")
    head = LogisticSweep(Cs=tuple(Cs), cv=possible, tol=1e-3, scoring="log_loss", random_state=seed)
    head.fit(take(embeddings, rows), y, groups)
    scores = head.oof_scores_
    probabilities = softmax(scores / fit_temperature(scores, y))
    quality = get_label_quality_scores(y, probabilities, method="self_confidence")
    issue = find_label_issues(y, probabilities, filter_by="both", n_jobs=1)
    order = np.lexsort((rows, quality))
    names = np.asarray(cache.label_names, dtype=object)[used]
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
