"""A tiny network over a few real images, with a head fitted on its cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.cache import open_cache
from pipeline.embedding.settings import RunSettings
from pipeline.stages.extract import ExtractSettings, extract
from pipeline.stages.fit_head import FitSettings, fit_head

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.cache import Cache


@dataclass(frozen=True)
class Probe:
    """A folder of images, its cache, and the run of a head on it."""

    images: Path
    cache_path: Path
    run: Path

    @property
    def cache(self) -> Cache:
        return open_cache(self.cache_path)


def make_probe(root: Path) -> Probe:
    """Embed 60 digits of three classes with a tiny random network (timm's test_efficientnet, 160 × 160)."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits(n_class=3)
    for i in range(60):
        folder = root / "images" / f"class{digits.target[i]}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(digits.images[i] * 16, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).resize((40, 40)).save(folder / f"{i:02d}.png")
    settings = ExtractSettings(
        backbone="timm/test_efficientnet",
        weights="random",
        run=RunSettings(engine="torch", precision="float32", workers=1),
    )
    extract(str(root / "images"), root / "c.h5", settings)
    fit_head(root / "c.h5", root / "run", FitSettings(Cs=(1.0,), learning_curve=False, report=False, folds=2))
    return Probe(root / "images", root / "c.h5", root / "run")
