"""How unlike the training rows a row is: its distance to them, and for classes how undecided the head is.

Axes: N rows, D features, K classes, M rows kept, n rows held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.vectors import unit_rows
from pipeline.errors import HeadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

NOVELTY_ARRAYS = (
    *("novelty_rows", "novelty_scale", "novelty_neighbour"),
    *("novelty_distances", "novelty_entropies", "novelty_sums"),
)
LEAST_ROWS = 20
"""Training rows (or groups) below which a share of them says nothing."""
NEIGHBOUR = 5
"""Which neighbour counts, where the rows kept are at least fifty; a tenth of them below that."""
MOST_HELD_OUT = 20_000
_MOST_KEPT = 5000
_MOST_VALUES = 1 << 22
"""Values of the rows kept: 17 MB."""
_BLOCK_VALUES = 1 << 23


@dataclass(frozen=True)
class Novelty:
    """Training rows of unit length, and how far other training rows are from them.

    The distance of a row is one minus the cosine to its k-th nearest row kept. A row of an unknown class may be near
    the training rows and between their classes, so for classes the entropy of the head's probabilities counts as much:
    both become percentiles of training rows that were held out, and so does their sum.

    Attributes
    ----------
    rows : ndarray of shape (M, D)
        Of unit length, features divided by ``scale`` first.
    scale : ndarray of shape (D,)
        What features are divided by: of several layers, so that each counts.
    neighbour : int
        k, from 1.
    held_out : ndarray of shape (n,)
        Distances of training rows to others than themselves, ascending.
    entropies, sums : ndarray of shape (n,) or (0,)
        Entropies of their out-of-fold probabilities and sums of both percentiles, each ascending; empty where there
        are none.

    References
    ----------
    Sun, Ming, Zhu and Li, "Out-of-distribution detection with deep nearest neighbors", ICML 2022: the distance, on
    features of unit length, and that a small share of the training rows suffices.
    """

    rows: NDArray[np.floating]
    scale: NDArray[np.floating]
    neighbour: int
    held_out: Floats
    entropies: Floats
    sums: Floats

    def distances(self, X: NDArray[Any]) -> Floats:
        """Return the distance of each row (N,)."""
        return _distances(X, self.rows, self.scale, self.neighbour)

    def percentiles(self, X: NDArray[Any], predictions: Floats) -> Floats:
        """Return how many of a hundred held-out training rows are less novel than each row (N,).

        Of rows like the training rows, at most P in a hundred lie at or above the percentile 100 − P, up to chance of
        the rows held out. The largest value is `largest`.

        Parameters
        ----------
        X : ndarray of shape (N, D)
            Features.
        predictions : ndarray of shape (N, K)
            Of the head.

        References
        ----------
        Bates, Candès, Lei, Romano and Sesia, "Testing for outliers with conformal p-values", Ann. Stat. 51 (2023),
        equation 2; this is 100 (1 − p).
        """
        found = _shares(self.held_out, self.distances(X))
        if len(self.sums):
            found = _shares(self.sums, found + _shares(self.entropies, entropies(predictions)))
        return 100.0 * found

    @property
    def largest(self) -> float:
        """The largest percentile that there is: 100 n / (n + 1)."""
        return 100.0 * len(self.held_out) / (len(self.held_out) + 1)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is saved."""
        values: tuple[NDArray[Any], ...] = (
            self.rows.astype(np.float32),
            self.scale.astype(np.float64),
            np.array([self.neighbour], dtype=np.int64),
            *(part.astype(np.float64) for part in (self.held_out, self.entropies, self.sums)),
        )
        return dict(zip(NOVELTY_ARRAYS, values, strict=True))

    @classmethod
    def of_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Novelty:
        """Return what `arrays` gave.

        Raises
        ------
        HeadError
            Shapes or values that none has.
        """
        rows, scale, neighbour, held_out, *of_heads = (arrays[name] for name in NOVELTY_ARRAYS)
        fits = (
            rows.ndim == 2
            and scale.shape == rows.shape[1:]
            and neighbour.shape == (1,)
            and neighbour.dtype.kind == "i"
            and held_out.ndim == 1
            and len(held_out) > 0
            and all(part.shape in (held_out.shape, (0,)) for part in of_heads)
            and len(of_heads[0]) == len(of_heads[1])
        )
        ascends = fits and all((np.diff(part) >= 0).all() for part in (held_out, *of_heads))
        if not ascends or not (scale > 0).all() or not 1 <= neighbour[0] <= len(rows):
            raise HeadError("expected the rows of a novelty score, found other arrays")
        return cls(rows, scale, int(neighbour[0]), held_out, *of_heads)


def fit_novelty(
    X: NDArray[np.floating],
    predictions: Floats | None = None,
    *,
    seed: int = 0,
    groups: NDArray[Any] | None = None,
    scale: Floats | None = None,
) -> Novelty | None:
    """Keep some training rows, and measure training rows against those kept that are not of their own group.

    Parameters
    ----------
    X : ndarray of shape (N, D)
        Training rows, finite; at most `MOST_HELD_OUT` are of use.
    predictions : ndarray of shape (N, K), optional
        Probabilities of classes from heads that did not see the row; without them the distance alone counts.
    seed : int
        Draws the rows kept.
    groups : ndarray of shape (N,), optional
        Rows of one group are alike; without groups each row is its own.
    scale : ndarray of shape (D,), optional
        What features are divided by first.

    Returns
    -------
    Novelty or None
        None where there are fewer than `LEAST_ROWS` rows or groups.
    """
    unit = np.arange(len(X)) if groups is None else np.unique(groups, return_inverse=True)[1].ravel()
    if len(np.unique(unit)) < LEAST_ROWS:
        return None
    divisor = np.ones(X.shape[1]) if scale is None else np.asarray(scale, dtype=np.float64)
    most = int(np.clip(_MOST_VALUES // X.shape[1], LEAST_ROWS, _MOST_KEPT))
    kept = np.sort(np.random.default_rng(seed).permutation(len(X))[:most])
    rows = unit_rows(np.divide(X[kept], divisor, dtype=np.float32, casting="same_kind"))
    # So that each row has that many neighbours outside its group, also where all groups but one are small.
    others = len(kept) - int(np.bincount(unit[kept]).max())
    if others < 1:
        return None
    neighbour = max(1, min(NEIGHBOUR, len(kept) // 10, others))
    held_out = _distances(X, rows, divisor, neighbour, own=unit, of_rows=unit[kept])
    if predictions is None:
        return Novelty(rows, divisor, neighbour, np.sort(held_out), np.zeros(0), np.zeros(0))
    doubts = entropies(predictions)
    sums = _shares(np.sort(held_out), held_out) + _shares(np.sort(doubts), doubts)
    return Novelty(rows, divisor, neighbour, np.sort(held_out), np.sort(doubts), np.sort(sums))


def entropies(predictions: Floats) -> Floats:
    """Return the entropy (N,) of probabilities (N, K).

    Examples
    --------
    >>> entropies(np.array([[1.0, 0.0], [0.5, 0.5]])).round(4).tolist()
    [0.0, 0.6931]
    """
    logarithms = np.log(predictions, out=np.zeros_like(predictions), where=predictions > 0)
    return np.asarray(0.0 - (predictions * logarithms).sum(axis=1))


def _shares(of: Floats, values: Floats) -> Floats:
    """Return the share of sorted values of held-out rows that lie below each value; always less than one."""
    return np.asarray(np.searchsorted(of, values, side="left") / (len(of) + 1))


def _distances(
    X: NDArray[Any],
    rows: NDArray[np.floating],
    scale: NDArray[np.floating],
    neighbour: int,
    own: Ints | None = None,
    of_rows: Ints | None = None,
) -> Floats:
    """Return one minus the cosine to a neighbour; of rows whose group is not their own where groups are given."""
    out = np.empty(len(X))
    step = max(_BLOCK_VALUES // len(rows), 1)
    divisor = scale.astype(np.float32)
    for start in range(0, len(X), step):
        block = unit_rows(np.divide(X[start : start + step], divisor, dtype=np.float32))
        cosine = block @ rows.T
        if own is not None and of_rows is not None:
            cosine[own[start : start + step, None] == of_rows] = -np.inf
        out[start : start + len(block)] = 1.0 - np.partition(cosine, -neighbour, axis=1)[:, -neighbour]
    return out
