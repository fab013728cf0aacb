"""The transformer gives the rows that extract gives, wherever the images come from."""

from __future__ import annotations

import pickle
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

import pipeline
from pipeline import ImageEmbedder
from pipeline.embedding.settings import RunSettings
from pipeline.errors import PipelineError
from pipeline.stages.extract import ExtractSettings, extract

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture(scope="module")
def folder(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the images that a test may change."""
    return shutil.copytree(image_folder, tmp_path_factory.mktemp("embedder") / "images")


@pytest.fixture(scope="module")
def cache(folder: Path) -> Path:
    path = folder.with_name("c.h5")
    extract(str(folder), path, ExtractSettings(run=RunSettings(precision="float32")))
    return path


@pytest.fixture(scope="module")
def paths(cache: Path, folder: Path) -> list[Path]:
    return [folder / key for key in pipeline.open(cache).keys]


@pytest.fixture(scope="module")
def rows(cache: Path) -> NDArray[Any]:
    return np.array(pipeline.open(cache).embeddings)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be computed."""

    def refuse(*args: Any) -> None:
        raise AssertionError("the network was opened")

    monkeypatch.setattr("pipeline.embedding.image_embedder._network", refuse)


@pytest.mark.usefixtures("no_network")
def test_what_the_cache_holds_is_looked_up(
    cache: Path, paths: list[Path], rows: NDArray[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = ImageEmbedder(cache=cache)
    order = np.random.default_rng(0).permutation(len(paths))
    found = embedder.transform([paths[i] for i in order])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, rows[order])
    copies = [shutil.copy(path, tmp_path / f"{i}.bin") for i, path in enumerate(paths)]  # other names, other times
    np.testing.assert_array_equal(embedder.transform(copies), rows)
    monkeypatch.chdir(paths[0].parent)
    np.testing.assert_array_equal(embedder.transform([paths[0].name] * 2), rows[[0, 0]])
    frame = pd.DataFrame({"path": [str(path) for path in paths]}, index=range(100, 100 + len(paths)))
    for table in (frame, frame["path"], frame.to_numpy(), np.array(frame["path"], dtype=str)):
        np.testing.assert_array_equal(embedder.transform(table), rows)
    named = clone(embedder).set_output(transform="pandas").fit_transform(frame)
    assert named.columns[:2].tolist() == ["imageembedder0", "imageembedder1"]
    assert named.index.tolist() == frame.index.tolist()
    assert embedder.transform([]).shape == (0, 1280)


@pytest.mark.slow
def test_what_is_computed_is_what_extract_computes(cache: Path, paths: list[Path], rows: NDArray[Any]) -> None:
    images = [Image.open(path) for path in paths]
    arrays = [np.asarray(image) for image in images]
    bare = ImageEmbedder()
    for given in (paths, images, arrays, [paths[0], images[1], arrays[2], *paths[3:]]):
        np.testing.assert_array_equal(bare.transform(given), rows)
    np.testing.assert_array_equal(ImageEmbedder(cache=cache).transform(images[:5]), rows[:5])
    grey = np.asarray(images[0].convert("L"))
    np.testing.assert_array_equal(bare.transform([grey]), bare.transform([np.stack([grey] * 3, axis=2)]))
    assert bare.get_feature_names_out().shape == (1280,)


def test_a_file_that_changed_is_computed(cache: Path, paths: list[Path], rows: NDArray[Any], tmp_path: Path) -> None:
    """Its key is in the cache, and another image lies there now."""
    kept = shutil.copy2(paths[0], tmp_path / "kept")
    try:
        Image.open(paths[1]).save(paths[0], "PNG")  # other bytes, the pixels of row 1
        np.testing.assert_array_equal(ImageEmbedder(cache=cache).transform(paths[:2]), rows[[1, 1]])
    finally:
        shutil.copy2(kept, paths[0])
    np.testing.assert_array_equal(ImageEmbedder(cache=cache).transform(paths[:2]), rows[:2])


def test_it_is_a_scikit_learn_estimator(cache: Path, paths: list[Path], rows: NDArray[Any]) -> None:
    embedder = ImageEmbedder(cache=str(cache), on_error="nan")
    assert clone(embedder).get_params() == embedder.get_params()
    assert pickle.loads(pickle.dumps(embedder)).get_params() == embedder.get_params()
    assert vars(embedder.fit([])) == vars(clone(embedder))
    labels = [path.parent.name for path in paths]
    model = make_pipeline(ImageEmbedder(cache=str(cache)), LogisticRegression(max_iter=2000))
    search = GridSearchCV(model, {"logisticregression__C": [0.001, 1.0]}, cv=3).fit(paths, labels)
    alone = GridSearchCV(LogisticRegression(max_iter=2000), {"C": [0.001, 1.0]}, cv=3).fit(rows, labels)
    assert search.predict_proba(paths).tolist() == alone.predict_proba(rows).tolist()
    assert search.cv_results_["mean_test_score"].tolist() == alone.cv_results_["mean_test_score"].tolist()


def test_a_broken_image_is_named(cache: Path, paths: list[Path], rows: NDArray[Any], tmp_path: Path) -> None:
    torn = tmp_path / "torn.png"
    torn.write_bytes(paths[0].read_bytes()[:300])
    given: list[Any] = [paths[0], torn, tmp_path / "none.png", paths[1]]
    with pytest.raises(PipelineError, match=r"cannot embed .*torn\.png: .*; 1 more fail: leave it out") as caught:
        ImageEmbedder(cache=cache).transform(given)
    assert "\n" not in str(caught.value)
    with Image.open(torn) as opened:
        found = ImageEmbedder(cache=cache, on_error="nan").transform([*given, opened])
    assert np.isnan(found[[1, 2, 4]]).all()
    np.testing.assert_array_equal(found[[0, 3]], rows[[0, 1]])


def test_wrong_use_is_said_in_one_line(cache: Path, paths: list[Path], tmp_path: Path) -> None:
    for embedder, given, said in (
        (ImageEmbedder(), str(paths[0]), "found one str: put it into a list"),
        (ImageEmbedder(), [np.zeros((4, 4, 3))], "found an array of float64"),
        (ImageEmbedder(), [np.zeros((4, 4, 7), np.uint8)], r"found a uint8 array of shape \(4, 4, 7\)"),
        (ImageEmbedder(), [3], "found a int"),
        (ImageEmbedder(cache=cache), pd.DataFrame({"a": ["x"], "b": ["y"]}), "found 2: choose the one"),
        (ImageEmbedder(cache=tmp_path / "none.h5"), [], "run pipeline extract first"),
        (ImageEmbedder("torchvision/resnet50", cache=cache), [], "found backbone='torchvision/resnet50'"),
        (ImageEmbedder(cache=cache, precision="bfloat16"), [], "found precision='bfloat16'"),
        (ImageEmbedder(cache=cache, layer="blocks.5"), [], "has no layer 'blocks.5'"),
        (ImageEmbedder(on_error="skip"), [], "found 'skip'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(PipelineError, match=said) as caught:
            embedder.transform(given)
        assert "\n" not in str(caught.value)
