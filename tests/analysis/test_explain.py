from __future__ import annotations

import io
import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from pipeline import load_head, open_cache
from pipeline.analysis.explain import FORMAT, check_explained, overlay
from pipeline.embedding.settings import RunSettings
from pipeline.errors import AnalysisError
from pipeline.stages.extract import ExtractSettings, extract
from pipeline.stages.fit_head import FitSettings, fit_head
from pipeline.stages.predict import predict

if TYPE_CHECKING:
    from pathlib import Path

RUN = RunSettings(engine="torch", precision="float32", workers=1)
QUICK: dict[str, Any] = {"folds": 2, "report": False, "learning_curve": False}


@pytest.fixture(scope="module")
def fitted(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a cache under a network that ends in a mean, and the runs of three heads."""
    root = tmp_path_factory.mktemp("explain")
    settings = ExtractSettings(backbone="timm/test_efficientnet", weights="random", run=RUN)
    extract(str(image_folder), root / "c.h5", settings)
    for head in ("ridge", "knn", "centroid"):
        fit_head(root / "c.h5", root / head, FitSettings(head=head, **QUICK))
    return root


def explained(folder: Path) -> tuple[dict[str, Any], Any]:
    index = json.loads((folder / "explanations.json").read_text())
    assert index["format"] == FORMAT
    maps = folder / "maps.npz"
    return index, np.load(maps) if maps.exists() else None


@pytest.mark.parametrize("head", ["ridge", "centroid"])
def test_the_mean_of_every_map_is_the_score_of_the_head(
    fitted: Path, image_folder: Path, head: str, tmp_path: Path
) -> None:
    summary = predict(fitted / head, str(image_folder), tmp_path / "out.csv", RUN, explain=tmp_path / "why")
    index, maps = explained(tmp_path / "why")
    model, cache = load_head(fitted / head), open_cache(fitted / "c.h5")
    scores = model.model.scores(np.asarray(cache.embeddings))
    scores -= scores.mean(axis=1, keepdims=True)
    shown = np.take_along_axis(scores, maps["classes"], axis=1)
    assert maps["maps"].shape == (24, 3, 5, 5)
    assert np.abs(maps["maps"].mean(axis=(2, 3)) - shown).max() <= 1e-4 * np.abs(scores).max()
    assert maps["scores"] == pytest.approx(maps["maps"].mean(axis=(2, 3)), rel=1e-4, abs=1e-5)
    assert maps["keys"].tolist() == cache.keys.tolist()
    # The first map is that of the predicted class.
    predicted = summary.to_pandas()["predicted"].tolist()
    assert [maps["class_names"][k] for k in maps["classes"][:, 0]] == predicted
    assert [entry["predicted"] for entry in index["images"]] == predicted
    files = {entry["picture"] for entry in index["images"]}
    assert len(files) == 24
    for name in files:
        with Image.open(tmp_path / "why" / name) as picture:
            assert picture.size == (160, 160)
    assert "24 predictions explained" in summary.headlines()[-1]


def test_the_nearest_training_images_are_those_of_the_largest_cosine(fitted: Path, tmp_path: Path) -> None:
    predict(fitted / "ridge", str(fitted / "c.h5"), None, explain=tmp_path / "why")
    index, _ = explained(tmp_path / "why")
    cache = open_cache(fitted / "c.h5")
    X = np.asarray(cache.embeddings, dtype=np.float64)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    held_out = {line.split(",")[0] for line in (fitted / "ridge" / "predictions.csv").read_text().splitlines()[1:]}
    train = np.array([row for row, key in enumerate(cache.keys.tolist()) if key not in held_out])
    for row, entry in enumerate(index["images"]):
        others = train[train != row]  # a row of the training cache is not its own neighbour
        expected = others[np.argsort(-(unit[others] @ unit[row]), kind="stable")[:5]]
        assert [near["key"] for near in entry["neighbours"]] == cache.keys[expected].tolist()
        assert [near["label"] for near in entry["neighbours"]] == [key.split("/")[0] for key in cache.keys[expected]]


def test_a_head_that_is_not_linear_has_neighbours_and_says_why_it_has_no_maps(fitted: Path, tmp_path: Path) -> None:
    summary = predict(fitted / "knn", str(fitted / "c.h5"), None, explain=tmp_path / "why")
    index, maps = explained(tmp_path / "why")
    assert maps is None
    assert index["notes"] == [note for note in summary.headlines() if note.startswith("No maps")]
    assert "the knn head is not linear" in index["notes"][0]
    assert all(len(entry["neighbours"]) == 5 and entry["picture"] is None for entry in index["images"])
    page = (tmp_path / "why" / "report.html").read_text()
    assert "the knn head is not linear" in page
    assert re.search(r'<p class="lead">24 predictions from layer penultimate of [^,]*, most often \w+ \(\d+\)', page)


@pytest.mark.slow
def test_what_is_gone_is_said_in_one_line_each(fitted: Path, image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder, tmp_path / "images")
    settings = ExtractSettings(backbone="timm/test_efficientnet", weights="random", run=RUN)
    extract(str(tmp_path / "images"), tmp_path / "c.h5", settings)
    fit_head(tmp_path / "c.h5", tmp_path / "run", FitSettings(head="centroid", **QUICK))
    shutil.copy(tmp_path / "c.h5", tmp_path / "new.h5")
    (tmp_path / "c.h5").unlink()
    shutil.rmtree(tmp_path / "images")
    predict(tmp_path / "run", str(tmp_path / "new.h5"), None, explain=tmp_path / "why")
    index, _ = explained(tmp_path / "why")
    assert all("\n" not in note for note in index["notes"])
    assert any(note.startswith("No nearest training images: expected a cache at") for note in index["notes"])
    assert any("24 images have no map" in note for note in index["notes"])
    # A cache that was brought up to date has other rows.
    shutil.copytree(image_folder / "ant", tmp_path / "images" / "cat")
    extract(str(tmp_path / "images"), tmp_path / "c.h5", settings)
    predict(tmp_path / "run", str(tmp_path / "new.h5"), None, explain=tmp_path / "why")
    assert any("no longer holds the rows" in note for note in explained(tmp_path / "why")[0]["notes"])


def test_a_folder_of_something_else_is_refused_before_the_work(fitted: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(AnalysisError, match="holds something else"):
        predict(fitted / "ridge", str(fitted / "c.h5"), tmp_path / "out.csv", explain=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt"}
    with pytest.raises(AnalysisError, match="at most 10000 images, got 10001"):
        check_explained(tmp_path / "new", 10_001)


def test_the_picture_shows_both_signs_where_they_are() -> None:
    contributions = np.zeros((4, 4))
    contributions[0, 0], contributions[3, 3] = 2.0, -2.0
    with Image.open(io.BytesIO(overlay(np.full((40, 40, 3), 128, np.uint8), contributions))) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    assert pixels[2, 2, 0] - pixels[2, 2, 2] > 80
    assert pixels[37, 37, 2] - pixels[37, 37, 0] > 60
    assert np.abs(pixels[2, 37] - 128).max() <= 1
