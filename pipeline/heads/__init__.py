"""Stage 2: heads on cached embeddings, with scikit-learn's conventions, and how a head is saved.

Loading and applying a saved head needs numpy alone; the estimators load scikit-learn, and the solvers torch, when used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.heads.classic import CentroidHead
    from pipeline.heads.knn import KnnHead
    from pipeline.heads.lda import LdaHead
    from pipeline.heads.linear import LinearHead
    from pipeline.heads.logistic import LogisticHead, LogisticSweep
    from pipeline.heads.ridge import RidgeHead, RidgeRegressionHead
    from pipeline.heads.saved import LoadedHead, load_head, save_head

__all__ = [
    "CentroidHead",
    "KnnHead",
    "LdaHead",
    "LinearHead",
    "LoadedHead",
    "LogisticHead",
    "LogisticSweep",
    "RidgeHead",
    "RidgeRegressionHead",
    "load_head",
    "save_head",
]

_HOMES = {
    "CentroidHead": "pipeline.heads.classic",
    "KnnHead": "pipeline.heads.knn",
    "RidgeHead": "pipeline.heads.ridge",
    "RidgeRegressionHead": "pipeline.heads.ridge",
    "LdaHead": "pipeline.heads.lda",
    "LinearHead": "pipeline.heads.linear",
    "LoadedHead": "pipeline.heads.saved",
    "LogisticHead": "pipeline.heads.logistic",
    "LogisticSweep": "pipeline.heads.logistic",
    "load_head": "pipeline.heads.saved",
    "save_head": "pipeline.heads.saved",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
