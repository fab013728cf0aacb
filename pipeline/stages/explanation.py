"""What `predict --explain` adds: predictions are collected while the table is written, then explained in a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.analysis.explain import Predicted, check_explained, explain, new_folder
from pipeline.report.explanation import write_explanation_page

if TYPE_CHECKING:
    import os
    import threading
    from collections.abc import Callable

    from pipeline.cache import Cache
    from pipeline.embedding.embedder import Embedder
    from pipeline.heads import LoadedHead
    from pipeline.heads.calibration import Calibration
    from pipeline.sources import Source


class ExplanationFolder:
    """A folder to explain predictions in, and the predictions so far.

    Parameters
    ----------
    folder : path

    Attributes
    ----------
    predicted : Predicted
        Filled while the table is written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = folder
        self.predicted = Predicted()

    def check(self, images: int) -> None:
        """Refuse what cannot be explained; see `pipeline.analysis.explain.check_explained`."""
        check_explained(self._folder, images)

    def write(
        self,
        head: LoadedHead,
        calibration: Calibration | None,
        source: Source | None,
        embedder: Callable[[], Embedder],
        *,
        own: Cache | None,
        stop: threading.Event,
    ) -> list[str]:
        """Explain the predictions; return what is to be known. See `pipeline.analysis.explain.explain`."""
        with new_folder(self._folder) as part:
            found = explain(part, head, calibration, self.predicted, source, embedder, own=own, stop=stop)
            write_explanation_page(part, found)
        return [f"{self._folder}: {len(found.items)} predictions explained", *found.notes]
