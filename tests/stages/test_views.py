"""Several views of every image, from the images to predictions."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import pipeline
from pipeline.cache import open_cache
from pipeline.errors import EngineError, FingerprintError, HeadError, PipelineError
from pipeline.heads import load_head

if TYPE_CHECKING:
    from pathlib import Path

PLAIN: dict[str, Any] = {
    "backbone": "timm/test_efficientnet", "weights": "random", "engine": "torch", "precision": "float32", "workers": 1,
    "verbose": False,
}  # fmt: skip
QUICK: dict[str, Any] = {"C": [1.0], "folds": 3, "report": False, "verbose": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 digits of two classes, and their cache with four corners."""
    from sklearn.datasets import load_digits

    root, digits = tmp_path_factory.mktemp("views"), load_digits(n_class=2)
    for i in range(60):
        place = root / "images" / f"class{digits.target[i]}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(digits.images[i] * 16, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).resize((60, 40)).save(place / f"{i:02d}.png")
    pipeline.extract(root / "images", root / "c.h5", views="5crop", **PLAIN)
    pipeline.fit_head(root / "c.h5", root / "run", **QUICK)
    return root


def predicted(file: Path) -> dict[str, tuple[str, ...]]:
    with file.open(newline="") as lines:
        return {row["key"]: tuple(row.values()) for row in csv.DictReader(lines)}


def test_the_first_view_is_what_a_cache_without_views_holds(folder: Path, tmp_path: Path) -> None:
    pipeline.extract(folder / "images", tmp_path / "plain.h5", **PLAIN)
    plain, several = open_cache(tmp_path / "plain.h5"), open_cache(folder / "c.h5")
    assert len(several.layers) == 5
    assert len(several) == len(plain) == 60
    assert np.allclose(plain.embeddings, several.embeddings, atol=1e-5)
    assert not np.allclose(several.layer("penultimate@top-left"), several.layer("penultimate@top-right"))


def test_images_are_predicted_as_their_rows_in_the_cache(folder: Path, tmp_path: Path) -> None:
    head = load_head(folder / "run")
    assert head.model.views == len(head.layers) == 5
    pipeline.predict(folder / "run", folder / "images", tmp_path / "images.csv", verbose=False)
    pipeline.predict(folder / "run", folder / "c.h5", tmp_path / "rows.csv", verbose=False)
    from_images, from_rows = predicted(tmp_path / "images.csv"), predicted(tmp_path / "rows.csv")
    assert from_images.keys() == from_rows.keys()
    assert len(from_rows) == 60
    for key, cells in from_rows.items():
        assert from_images[key][1] == cells[1]
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert metrics["test"]["rows"] == 12  # images, not views


def test_one_view_alone_can_be_taken(folder: Path, tmp_path: Path) -> None:
    pipeline.fit_head(folder / "c.h5", tmp_path / "plain", views=False, **QUICK)
    pipeline.fit_head(folder / "c.h5", tmp_path / "corner", layer="penultimate@top-left", **QUICK)
    assert load_head(tmp_path / "plain").layers == ("penultimate",)
    assert load_head(tmp_path / "corner").layers == ("penultimate@top-left",)


@pytest.mark.parametrize("head", ["knn", "ridge"])
def test_other_heads_take_views_too(head: str, folder: Path, tmp_path: Path) -> None:
    pipeline.fit_head(folder / "c.h5", tmp_path / head, head=head, folds=3, report=False, verbose=False)
    pipeline.predict(tmp_path / head, folder / "c.h5", tmp_path / "p.csv", verbose=False)
    assert len(predicted(tmp_path / "p.csv")) == 60


def test_an_estimator_that_is_not_converted_takes_views_too(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "forest"
    estimator = "sklearn.ensemble:RandomForestClassifier"
    pipeline.fit_head(folder / "c.h5", run, estimator=estimator, set={"n_estimators": 5}, report=False, verbose=False)
    pipeline.predict(run, folder / "c.h5", tmp_path / "p.csv", trust=True, verbose=False)
    assert len(predicted(tmp_path / "p.csv")) == 60


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"layers": ["all"]}, "--layers takes one view"), ({"head": "linear"}, "--head linear takes one view")],
)
def test_what_takes_one_view_says_so(settings: dict[str, Any], message: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(HeadError, match=f"{message} of an image, and the cache holds 5: add --no-views"):
        pipeline.fit_head(folder / "c.h5", tmp_path / "run", report=False, verbose=False, **settings)


def test_training_takes_one_view(folder: Path, tmp_path: Path) -> None:
    pipeline.fit_head(folder / "c.h5", tmp_path / "plain", views=False, **QUICK)
    with pytest.raises(PipelineError, match="training takes one view of an image"):
        pipeline.finetune(folder / "c.h5", tmp_path / "plain", tmp_path / "tuned", verbose=False)


def test_an_explanation_shows_neighbours_and_says_why_no_map(folder: Path, tmp_path: Path) -> None:
    found = pipeline.predict(
        folder / "run", folder / "c.h5", tmp_path / "p.csv", explain=tmp_path / "why", verbose=False
    )
    assert any("fit a head on one layer for maps" in line for line in found.headlines())


def test_a_cache_is_not_continued_with_other_views(folder: Path) -> None:
    with pytest.raises(FingerprintError, match=r"preprocess\.views"):
        pipeline.extract(folder / "images", folder / "c.h5", views="multiscale", **PLAIN)
    with pytest.raises(FingerprintError, match=r"preprocess\.views"):
        pipeline.extract(folder / "images", folder / "c.h5", **PLAIN)


def test_the_gpu_decodes_one_view(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="--decode gpu cuts one view of an image, and --views 5crop has 5"):
        pipeline.extract(folder / "images", tmp_path / "c.h5", views="5crop", decode="gpu", **PLAIN)
