"""Search by words: the images of a cache that are nearest to a text, for dual encoders.

Axes: n texts, D embedding width.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from pipeline.analysis.nearest import nearest
from pipeline.labelling.journal import LabelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.cache import Cache

    EmbedTexts = Callable[[Sequence[str]], NDArray[np.float32]]
    """Returns the features (n, D) of texts, in the space of the cache's embeddings."""

LONGEST_TEXT = 1000


class Words:
    """Finds images by words; safe to use from several threads.

    Parameters
    ----------
    cache : Cache
        An open cache.
    layer : str
        The layer that texts are compared with.
    load : callable
        Loads the text half of the network and returns the function that embeds texts. It is called with the first
        text, since it takes seconds and memory.
    """

    def __init__(self, cache: Cache, layer: str, load: Callable[[], EmbedTexts]) -> None:
        self._embeddings = cache.layer(layer)
        self._load = load
        self._embed: EmbedTexts | None = None
        self._lock = threading.Lock()

    def nearest(self, text: str, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Return the rows of the cache that are nearest to a text by cosine, the nearest first.

        Parameters
        ----------
        text : str
            What to search for.
        rows : (m,) int64
            Rows to search, ascending.
        count : int
            How many.

        Raises
        ------
        LabelError
            There is no text, or a long one.
        PipelineError
            The network is not available here, or has no text half.
        """
        text = " ".join(text.split())
        if not 0 < len(text) <= LONGEST_TEXT:
            raise LabelError(f"expected 1 to {LONGEST_TEXT} characters to search for, found {len(text)}: write others")
        with self._lock:  # one network is enough, and two searches at once would load two
            if self._embed is None:
                self._embed = self._load()
            vector = self._embed([text])
        found, _ = nearest(self._embeddings, vector, count, rows=rows)
        return np.asarray(found[0][found[0] >= 0])
