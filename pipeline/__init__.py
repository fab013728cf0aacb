"""Run a frozen pretrained network once over an image archive, cache the embeddings, fit classical heads in seconds.

Here are the names for reading what there is: `open_cache`, `load_head`. They are loaded when first used, so that
opening a cache never imports torch. The stages are functions of their modules: `pipeline.extract.extract`,
`pipeline.fit_head.fit_head`, `pipeline.predict.predict`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.cache import Cache, open_cache
    from pipeline.errors import PipelineError
    from pipeline.heads import LoadedHead, load_head

__all__ = ["Cache", "LoadedHead", "PipelineError", "load_head", "open_cache"]

_HOMES = {
    "Cache": "pipeline.cache",
    "LoadedHead": "pipeline.heads",
    "PipelineError": "pipeline.errors",
    "load_head": "pipeline.heads",
    "open_cache": "pipeline.cache",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
