"""Caches of the same images by two networks in one head: figures of each alone, and predictions."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from pipeline import open_cache
from pipeline.embedding.settings import RunSettings
from pipeline.errors import CacheError, FingerprintError, HeadError, PipelineError
from pipeline.heads import load_head
from pipeline.stages.extract import ExtractSettings, extract
from pipeline.stages.fit_head import FitSettings, fit_head, fit_heads
from pipeline.stages.predict import predict
from tests.cli.run import run_command

if TYPE_CHECKING:
    from pathlib import Path

QUICK: dict[str, Any] = {
    "folds": 2, "Cs": (1.0,), "learning_curve": False, "replicates": 100, "device": "cpu", "report": False,
}  # fmt: skip
SMALL = ExtractSettings(size=64, run=RunSettings(precision="float32", engine="torch"))
LARGER = replace(SMALL, size=96)
NAMES = ["p_ant", "p_bee", "p_cat"]


@pytest.fixture(scope="module")
def joined(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two caches of the same images, the second in another order, and a run on both."""
    root = tmp_path_factory.mktemp("joined")
    paths = sorted(image_folder.glob("*/*.png"))
    table = pd.DataFrame({"path": map(str, paths), "label": [path.parent.name for path in paths]})
    table = table.assign(key=[f"{path.parent.name}/{path.name}" for path in paths], age=np.arange(len(paths)) % 5)
    table.to_csv(root / "images.csv", index=False)
    table[::-1].to_csv(root / "turned.csv", index=False)
    extract(str(root / "images.csv"), root / "a.h5", SMALL)
    extract(str(root / "turned.csv"), root / "b.h5", LARGER)
    fit_head([root / "a.h5", root / "b.h5"], root / "run", FitSettings(**QUICK | {"report": True}))
    return root


def features(joined: Path) -> Any:
    a, b = open_cache(joined / "a.h5"), open_cache(joined / "b.h5")
    assert a.keys.tolist() == b.keys.tolist()[::-1]
    return np.concatenate([a.embeddings, b.embeddings[::-1]], axis=1)


def test_rows_are_matched_and_each_alone_is_compared_with_both(joined: Path) -> None:
    metrics = json.loads((joined / "run/metrics.json").read_text())
    found = metrics["inputs"]
    assert [each["inputs"] for each in found["alone"]] == ["a.h5", "b.h5"]
    assert found["all"]["value"] == metrics["test"]["accuracy"]["value"]
    for each in found["alone"]:
        assert found["all"]["value"] - each["figure"]["value"] == pytest.approx(each["others_add"]["value"])
    assert "What the inputs add" in (joined / "run/report.html").read_text()
    run = json.loads((joined / "run/run.json").read_text())
    assert run["more"][0]["path"] == str(joined / "b.h5")


def test_the_head_keeps_both_networks(joined: Path) -> None:
    head = load_head(joined / "run")
    a, b = open_cache(joined / "a.h5"), open_cache(joined / "b.h5")
    assert (head.spec, head.fingerprint) == (a.spec, a.fingerprint)
    assert [(of.spec, of.fingerprint, of.layers) for of in head.more] == [(b.spec, b.fingerprint, ("penultimate",))]
    turned = {name: np.asarray(rows)[::-1] for name, rows in b.layers.items()}
    assert np.array_equal(head.features(a.layers, more=[turned]), features(joined))
    with pytest.raises(HeadError, match="expected the embeddings of 1 networks besides the first, found 0"):
        head.features(a.layers)


def test_caches_and_images_are_predicted_alike(joined: Path) -> None:
    expected = load_head(joined / "run").predict_proba(features(joined))
    of_caches = predict(joined / "run", [str(joined / "a.h5"), str(joined / "b.h5")], None)
    of_images = predict(joined / "run", str(joined / "images.csv"), None, SMALL.run)
    for found in (of_caches, of_images):
        table = found.to_pandas()
        assert table.index.tolist() == open_cache(joined / "a.h5").keys.tolist()
        assert np.allclose(table[NAMES].to_numpy(dtype=float), expected, atol=1e-4)


def test_columns_join_both_networks(joined: Path, tmp_path: Path) -> None:
    caches = [joined / "a.h5", joined / "b.h5"]
    result = fit_head(caches, tmp_path / "run", FitSettings(features=("age",), **QUICK))
    inputs = [each["inputs"] for each in result.metrics["inputs"]["alone"]]
    assert inputs == ["a.h5", "b.h5", "embeddings", "columns"]
    table = predict(tmp_path / "run", [*map(str, caches)], None).to_pandas()
    head, a = load_head(tmp_path / "run"), open_cache(joined / "a.h5")
    more = [{"penultimate": np.asarray(open_cache(joined / "b.h5").embeddings)[::-1]}]
    expected = head.predict_proba(head.features(a.layers, a.columns, more))
    assert np.allclose(table[NAMES].to_numpy(dtype=float), expected, atol=1e-4)


def test_an_image_that_one_network_lacks_is_left_out(joined: Path, image_folder: Path, tmp_path: Path) -> None:
    data = pd.read_csv(joined / "images.csv")
    broken = tmp_path / "cut.png"
    broken.write_bytes((image_folder / "ant" / "00.png").read_bytes()[:900])
    data.loc[0, "path"] = str(broken)
    data.to_csv(tmp_path / "images.csv", index=False)
    for name, settings in (("a.h5", SMALL), ("b.h5", LARGER)):
        extract(str(tmp_path / "images.csv"), tmp_path / name, settings)
    caches = [str(tmp_path / "a.h5"), str(tmp_path / "b.h5")]
    result = fit_heads(caches, tmp_path / "run", ["label"], FitSettings(**QUICK))[0]
    assert any("left out: 1 of 12 rows that failed" in note for note in result.notes)
    summary = predict(tmp_path / "run" / "label", caches, None)
    of_images = predict(tmp_path / "run" / "label", str(tmp_path / "images.csv"), None, SMALL.run)
    for found in (summary, of_images):
        assert found.failed == 1
        assert found.to_pandas()["error"].iloc[0] != ""


def test_what_such_a_head_cannot_do_is_refused_by_name(joined: Path, image_folder: Path, tmp_path: Path) -> None:
    run, a, b = str(joined / "run"), str(joined / "a.h5"), str(joined / "b.h5")
    with pytest.raises(FingerprintError, match=r"b\.h5: expected preprocess"):
        predict(run, [b, a], None)
    for given, message in (
        (a, "expected 2 caches, one of each network of the head in the order of its fit, found 1"),
        ([a, b, a], "expected 2 caches, .* found 3"),
        ([a, str(image_folder)], "expected one source of images, or caches, found 2"),
    ):
        with pytest.raises(HeadError, match=message):
            predict(run, given, None)
    with pytest.raises(HeadError, match="--weights: expected one for each of the 2 networks"):
        predict(run, str(joined / "images.csv"), None, weights="w.pt")
    with pytest.raises(HeadError, match="--explain: expected a head on one network, found one on 2"):
        predict(run, [a, b], None, explain=tmp_path / "why")
    for settings, message in (
        ({"layers": ("penultimate", "x")}, "--layers chooses among the layers of one cache"),
        ({"prompts": "p.csv", "start": "zero-shot"}, "--prompts"),
    ):
        with pytest.raises(PipelineError, match=message):
            fit_head([a, b], tmp_path / "no", FitSettings(**QUICK | settings))
    extract(str(image_folder / "bee"), tmp_path / "bee.h5", LARGER)
    with pytest.raises(CacheError, match=r"a\.h5 and .*bee\.h5: expected the same images, found 20 keys in one"):
        fit_head([a, str(tmp_path / "bee.h5")], tmp_path / "no", FitSettings(**QUICK))
    assert not (tmp_path / "no").exists()


def test_the_commands_take_several_caches(joined: Path, tmp_path: Path) -> None:
    caches = [joined / "a.h5", joined / "b.h5"]
    options = ["--no-report", "--C", "1", "--folds", "2", "--device", "cpu"]
    ran = run_command("fit-head", *caches, "-o", tmp_path / "run", *options)
    assert ran.exit_code == 0, ran.stderr
    assert "all inputs: accuracy" in ran.stderr
    ran = run_command("predict", tmp_path / "run", *caches, "-o", tmp_path / "out.csv")
    assert ran.exit_code == 0, ran.stderr
    assert len(pd.read_csv(tmp_path / "out.csv")) == 12
    ran = run_command("finetune", joined / "a.h5", tmp_path / "run", "-o", tmp_path / "tuned", "--device", "cpu")
    assert "finetune: expected a head on one network, found one on 2" in ran.stderr
