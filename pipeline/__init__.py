"""Run a frozen pretrained network once over an image archive, cache the embeddings, fit classical heads in seconds.

Here are the names for scripts: `open` (the rows of a cache that are done, as analyses want them), `open_cache` (the
file as it is, every row), `load_head`, `ImageEmbedder` (images to embeddings, as a scikit-learn transformer). They are
loaded when first used, so that opening a cache never imports torch. The stages are functions of their modules:
`pipeline.stages.extract.extract`, `pipeline.stages.fit_head.fit_head`, `pipeline.stages.predict.predict`.
"""

# As little as possible is imported here: it runs before the command line handles signals. `os` is loaded already.
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pipeline.cache import Cache, open_cache
    from pipeline.embedding.image_embedder import ImageEmbedder
    from pipeline.errors import PipelineError
    from pipeline.heads import LoadedHead, load_head
    from pipeline.selection import Selection
    from pipeline.selection import open_selection as open
    from pipeline.stages.calls import extract, finetune, fit_head, predict

# Libraries send no usage reports, unless the user's environment says otherwise. OpenVINO's are switched off where it is
# imported: it reads no such variable.
for _name, _value in (
    ("DO_NOT_TRACK", "1"),
    ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ("NO_ALBUMENTATIONS_UPDATE", "1"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
):
    os.environ.setdefault(_name, _value)

__all__ = [
    "Cache",
    "ImageEmbedder",
    "LoadedHead",
    "PipelineError",
    "Selection",
    "extract",
    "finetune",
    "fit_head",
    "load_head",
    "open",
    "open_cache",
    "predict",
]

_HOMES = {
    "Cache": "pipeline.cache:Cache",
    "ImageEmbedder": "pipeline.embedding.image_embedder:ImageEmbedder",
    "LoadedHead": "pipeline.heads:LoadedHead",
    "PipelineError": "pipeline.errors:PipelineError",
    "Selection": "pipeline.selection:Selection",
    "extract": "pipeline.stages.calls:extract",
    "finetune": "pipeline.stages.calls:finetune",
    "fit_head": "pipeline.stages.calls:fit_head",
    "load_head": "pipeline.heads:load_head",
    "open": "pipeline.selection:open_selection",
    "open_cache": "pipeline.cache:open_cache",
    "predict": "pipeline.stages.calls:predict",
}


def __getattr__(name: str) -> "Any":
    if name in _HOMES:
        import importlib  # see above

        module, _, attribute = _HOMES[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
