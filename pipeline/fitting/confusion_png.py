"""Draw the confusion matrix as ``confusion.png``."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.text import shortened

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

_MOST_NAMES = 40


def save_confusion(path: str | os.PathLike[str], confusion: NDArray[Any], class_names: tuple[str, ...]) -> None:
    """Draw the confusion matrix, each row as shares of its label, with counts where they fit.

    Parameters
    ----------
    path : str or Path
        The PNG file to write.
    confusion : ndarray of shape (K, K)
        Counts, labels down, predictions across.
    class_names : tuple of str
        K names.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    k = len(class_names)
    size = float(np.clip(0.5 * k + 2.5, 4.5, 14))
    figure = Figure(figsize=(size, size * 0.95), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    if k <= _MOST_NAMES:
        # A dollar sign would start a formula.
        names = [shortened(name).replace("$", r"\$") for name in class_names]
        axes.set_xticks(range(k), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(k), names)
    if k <= _MOST_NAMES // 2:
        for i, j in zip(*np.nonzero(confusion), strict=True):
            colour = "white" if share[i, j] > 0.5 else "black"
            axes.text(j, i, str(confusion[i, j]), ha="center", va="center", color=colour, fontsize=7)
    # No creation date or software line: the same figures give the same file.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks
        figure.savefig(path, format="png", metadata={"Software": None})
