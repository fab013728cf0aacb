"""Run a frozen pretrained network once over an image archive, cache the embeddings, fit classical heads in seconds.

The public names are loaded when they are first used, so that opening a cache never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.cache import Cache, open_cache
    from pipeline.errors import PipelineError
    from pipeline.extract import ExtractSettings, extract

__all__ = ["Cache", "ExtractSettings", "PipelineError", "extract", "open_cache"]

_HOMES = {
    "Cache": "pipeline.cache",
    "ExtractSettings": "pipeline.extract",
    "PipelineError": "pipeline.errors",
    "extract": "pipeline.extract",
    "open_cache": "pipeline.cache",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
