"""Images unlike all others: far from their neighbours, blank, or extreme in sharpness or size.

Axes: N rows, D features, d reduced features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.analysis.picture_facts import PictureFacts, picture_facts
from pipeline.analysis.projection import principal_components
from pipeline.analysis.rows import label_texts, take, usable_rows
from pipeline.core.spec import PENULTIMATE
from pipeline.selection.frames import frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.cache import Cache

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

THRESHOLD = 3.5
"""Robust standard deviations from which a row stands out, as Iglewicz and Hoaglin (1993) advise."""

BLANK = 2.0
"""Contrast, in grey levels of 255, below which an image is blank."""

FAR, IS_BLANK = "far from its neighbours", "blank"
_WORDS = {
    "sharpness": ("blurred", "sharp or noisy"),
    "area": ("small", "large"),
    "elongation": ("square", "elongated"),
}
REASONS = (IS_BLANK, FAR, *(word for words in _WORDS.values() for word in words))
"""Every reason that a row can be given, in the order of a page."""

_REDUCED = 128
_BLOCK = 4096
_LEAST_SPREAD = {"distance": 0.01, "sharpness": 0.1, "area": 0.1, "elongation": 0.1}
"""Least standard deviation of each logarithm: where most images are of one size, a few more pixels are nothing."""

NO_IMAGES = "the source images cannot be read: outliers are judged by embeddings alone"


@dataclass(frozen=True)
class Outliers:
    """How unusual every row is.

    Attributes
    ----------
    table : pandas.DataFrame
        ``key``, ``label``, ``why`` (reasons joined by "; ", empty for a usual row), ``z`` (the largest of the row's
        robust standard deviations), ``distance`` (to the k-th neighbour), ``nearest`` (key of the nearest row),
        ``contrast``, ``sharpness``, ``width`` and ``height`` (NaN where the image cannot be read). Outliers first.
    rows : (N,) int64
        The cache row of each line.
    by_pixels : bool
        Whether images were read.
    unread : int
        Images that could not be read, where others could.
    """

    table: Any
    rows: Ints
    by_pixels: bool
    unread: int

    @property
    def count(self) -> int:
        """Number of outliers."""
        return int((self.table["why"] != "").sum())

    def of(self, reason: str) -> NDArray[np.bool_]:
        """Return which lines (N,) have this reason."""
        return np.array([reason in why.split("; ") for why in self.table["why"]], dtype=np.bool_)

    def summary(self) -> str:
        """Return what was found, in a clause."""
        counts = [f"{count} {reason}" for reason in REASONS if (count := int(self.of(reason).sum()))]
        parts = f" ({', '.join(counts)})" if counts else ""
        return f"{self.count} of {len(self.table)} images stand out{parts}"


def find_outliers(
    cache: Cache,
    *,
    k: int = 10,
    threshold: float = THRESHOLD,
    layer: str = PENULTIMATE,
    use_pixels: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Outliers:
    """Rank the rows of a cache by how unusual they are.

    Parameters
    ----------
    cache : Cache
        An open cache.
    k : int
        The neighbour whose distance counts: groups of up to k similar images can stand out.
    threshold : float
        Robust standard deviations from which a row stands out.
    layer : str
        Which layer.
    use_pixels : bool
        Whether images are read for blankness, sharpness and size.
    say : callable
        Called with each line for the user.

    Raises
    ------
    AnalysisError
        Fewer than 3 rows are done.

    Notes
    -----
    A row's distance is that to its k-th nearest neighbour (Ramaswamy, Rastogi and Shim, "Efficient algorithms for
    mining outliers from large data sets", SIGMOD 2000), on 128 principal components and the length of the rest. All
    measures are compared on a log scale by median and median absolute deviation (Iglewicz and Hoaglin, "How to detect
    and handle outliers", 1993).
    """
    embeddings = cache.layer(layer)
    rows = usable_rows(cache, embeddings, least=3)
    distance, nearest = _neighbours(embeddings, rows, min(k, len(rows) - 1))
    facts = picture_facts(cache, rows) if use_pixels else None
    if facts is not None and not facts.there.any():
        say(NO_IMAGES)
        facts = None
    z, why = _judged(distance, facts, threshold)
    columns = {
        "key": cache.keys[rows],
        "label": label_texts(cache, rows),
        "why": why,
        "z": z.round(3),
        "distance": distance.round(6),
        "nearest": cache.keys[rows[nearest]],
    }
    for name in ("contrast", "sharpness", "width", "height"):
        columns[name] = np.full(len(rows), np.nan) if facts is None else getattr(facts, name).round(4)
    order = np.lexsort((rows, -z, why == ""))
    unread = 0 if facts is None else int((~facts.there).sum())
    return Outliers(frame({name: of[order] for name, of in columns.items()}), rows[order], facts is not None, unread)


def robust_z(values: Floats, least: float) -> Floats:
    """Return how many robust standard deviations each value lies from the median; NaN where it is not finite.

    Parameters
    ----------
    values : ndarray of shape (N,)
    least : float
        Least standard deviation.

    Examples
    --------
    >>> robust_z(np.array([0.0, 1.0, 2.0, 3.0, 4.0, 100.0]), 0.1).round(1).tolist()
    [-1.1, -0.7, -0.2, 0.2, 0.7, 43.8]
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return np.full(len(values), np.nan)
    middle = np.median(known)
    spread = 1.4826 * np.median(np.abs(known - middle))  # the standard deviation of a normal distribution
    return np.asarray(np.where(np.isfinite(values), (values - middle) / max(spread, least), np.nan))


def _judged(distance: Floats, facts: PictureFacts | None, threshold: float) -> tuple[Floats, NDArray[np.object_]]:
    """Return the largest z of each row (infinite for a blank image), and its reasons."""
    with np.errstate(divide="ignore"):
        logs = {"distance": np.log(np.maximum(distance, 1e-6 * max(float(np.median(distance)), 1e-12)))}
        if facts is not None:
            logs["sharpness"] = np.log(facts.sharpness)
            logs["area"] = np.log(facts.width * facts.height)
            logs["elongation"] = np.abs(np.log(facts.width / facts.height))
    largest = np.zeros(len(distance))
    reasons: list[list[str]] = [[] for _ in distance]
    if facts is not None:
        blank = facts.contrast < BLANK
        largest[blank] = np.inf
        for row in np.flatnonzero(blank):
            reasons[row].append(IS_BLANK)
            logs["sharpness"][row] = np.nan
    for name, values in logs.items():
        z = np.nan_to_num(robust_z(values, _LEAST_SPREAD[name]))
        # Near neighbours are nothing unusual.
        z = np.maximum(z, 0.0) if name == "distance" else z
        low, high = _WORDS.get(name, ("", FAR))
        for row in np.flatnonzero(np.abs(z) >= threshold):
            reasons[row].append(high if z[row] > 0 else low)
        largest = np.maximum(largest, np.abs(z))
    return largest, np.array(["; ".join(words) for words in reasons], dtype=object)


def _neighbours(embeddings: NDArray[Any], rows: Ints, k: int) -> tuple[Floats, Ints]:
    """Return each row's distance to its k-th neighbour, and the position of its nearest one."""
    from sklearn.neighbors import NearestNeighbors  # takes a second

    reduced = _reduced(embeddings, rows)
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(reduced)
    distance, found = search.kneighbors()  # without the row itself
    return distance[:, -1].astype(np.float64), found[:, 0].astype(np.int64)


def _reduced(embeddings: NDArray[Any], rows: Ints) -> NDArray[np.float32]:
    """Return the leading components of rows with the length of the rest, (n, d + 1), which hides nothing unusual."""
    components = principal_components(embeddings, rows, _REDUCED)
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(rows), _BLOCK)]
    mean = sum(take(embeddings, rows[block]).sum(axis=0, dtype=np.float64) for block in blocks) / len(rows)
    squares = np.concatenate([((take(embeddings, rows[block]) - mean) ** 2).sum(axis=1) for block in blocks])
    rest = squares - (components.astype(np.float64) ** 2).sum(axis=1)
    return np.column_stack([components, np.sqrt(np.maximum(rest, 0.0))]).astype(np.float32)
