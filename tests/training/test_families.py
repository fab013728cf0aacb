"""Fine-tuning of networks of the families whose libraries build them."""

from __future__ import annotations

import csv
import importlib.util
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from pipeline.cache import open_cache
from pipeline.embedding.settings import RunSettings
from pipeline.heads import load_head
from pipeline.stages.extract import ExtractSettings, extract
from pipeline.stages.finetune import FinetuneSettings, finetune
from pipeline.stages.fit_head import FitSettings, fit_head
from pipeline.stages.predict import predict
from pipeline.training.settings import TrainSettings

if TYPE_CHECKING:
    from pathlib import Path

RUN = RunSettings(engine="torch", precision="float32", workers=1)
TRAIN = TrainSettings(epochs=1, batch_size=16, precision="float32", device="cpu", lr=3e-3)

SETTINGS = FinetuneSettings(train=TRAIN, run=RUN, replicates=50, mix="none")  # a mix may be the start itself


@pytest.fixture(autouse=True)
def own_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what is known of made-up weights out of the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of 40 digits of two classes."""
    from sklearn.datasets import load_digits

    digits = load_digits(n_class=2)
    for i in range(40):
        folder = tmp_path / "images" / f"class{digits.target[i]}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(digits.images[i] * 16, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).resize((40, 40)).save(folder / f"{i:02d}.png")
    return tmp_path / "images"


def save(family: str, folder: Path) -> str:
    """Save a tiny network with random weights; return its name as a backbone."""
    library = {"local-dir": "timm", "transformers": "transformers", "open_clip": "open_clip"}[family.partition(" ")[0]]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs the extra {library!r}")
    from tests.backbones import tiny

    if family == "open_clip":
        tiny.save_open_clip(folder)
        return f"open_clip:{folder}"
    if family == "local-dir":
        import timm
        from timm.models._hub import save_for_hf

        save_for_hf(timm.create_model("test_vit", num_classes=3), str(folder), safe_serialization=True)
        return f"local-dir:{folder}"
    tiny.save(folder, family.partition(" ")[2])
    return f"transformers:{folder}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["local-dir", "transformers vit", "transformers resnet", "transformers clip", "open_clip"]
)
def test_a_tuned_network_is_built_again_with_the_numbers_that_were_measured(
    family: str, images: Path, tmp_path: Path
) -> None:
    name = save(family, tmp_path / "network")
    extract(str(images), tmp_path / "c.h5", ExtractSettings(backbone=name, run=RUN))
    fit_head(tmp_path / "c.h5", tmp_path / "run", FitSettings(Cs=(1.0,), learning_curve=False, report=False, folds=2))
    tuned = tmp_path / "tuned"
    finetune(tmp_path / "c.h5", tmp_path / "run", tuned, SETTINGS)
    extract(str(images), tmp_path / "tuned.h5", ExtractSettings(weights=str(tuned), run=RUN))
    before, cache, head = open_cache(tmp_path / "c.h5"), open_cache(tmp_path / "tuned.h5"), load_head(tuned)
    assert cache.fingerprint == head.fingerprint != before.fingerprint
    assert not np.allclose(cache.embeddings, before.embeddings)
    answers = dict(zip(cache.keys.tolist(), head.predict(np.array(cache.embeddings)).tolist(), strict=True))
    predict(tuned, str(images), tmp_path / "p.csv", RUN)
    for file, least in ((tuned / "predictions.csv", 8), (tmp_path / "p.csv", 40)):
        with file.open(newline="") as rows:
            named = {row["key"]: row["predicted"] for row in csv.DictReader(rows)}
        assert len(named) >= least
        assert named.items() <= answers.items()
