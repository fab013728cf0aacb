from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline import open_cache
from pipeline.embedding.choose import choose_engine
from pipeline.embedding.settings import RunSettings
from pipeline.errors import PipelineError
from pipeline.evaluation.tasks import TASKS
from pipeline.heads import LoadedHead, load_head, save_head
from pipeline.heads.model import HeadModel
from pipeline.heads.trust import TrustOptions
from pipeline.stages.extract import ExtractSettings, extract
from pipeline.stages.fit_head import FitSettings, fit_head
from pipeline.stages.predict import predict

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def run_dir(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("predict")
    extract(str(image_folder), root / "c.h5", ExtractSettings(run=RunSettings(precision="float32")))
    fit_head(root / "c.h5", root / "run", FitSettings(folds=2, report=False, Cs=(0.01, 1.0)))
    return root / "run"


def test_predictions_on_images_equal_those_on_their_cached_rows(
    run_dir: Path, image_folder: Path, tmp_path: Path
) -> None:
    summary = predict(run_dir, str(image_folder), tmp_path / "out.csv")
    assert (summary.total, summary.failed) == (24, 0)
    table = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    cache, head = open_cache(run_dir.parent / "c.h5"), load_head(run_dir)
    expected = head.predict_proba(np.asarray(cache.embeddings))
    assert table["key"].tolist() == cache.keys.tolist()
    assert np.allclose(table[["p_ant", "p_bee", "p_cat"]].to_numpy(dtype=float), expected, atol=1e-5)
    assert table["predicted"].tolist() == [("ant", "bee", "cat")[i] for i in expected.argmax(1)]
    assert (table["error"] == "").all()


def test_a_broken_image_keeps_its_line(run_dir: Path, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    whole = (image_folder / "ant" / "00.png").read_bytes()
    (tmp_path / "images" / "a.png").write_bytes(whole)
    (tmp_path / "images" / "b.png").write_bytes(whole[:-2000])
    summary = predict(run_dir, str(tmp_path / "images"), tmp_path / "out.csv")
    assert summary.failed == 1
    table = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert table["predicted"][0] in ("ant", "bee", "cat")
    assert table["predicted"][1] == ""
    assert table["error"][1] != ""


def test_files_that_are_no_images_are_told(run_dir: Path, image_folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes((image_folder / "ant" / "00.png").read_bytes())
    (images / "b.jpg").write_bytes(b"")
    (images / "c.NEF").write_bytes(b"MM")
    (images / "notes.txt").write_bytes(b"x")
    summary = predict(run_dir, str(images), tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert table["key"].tolist() == ["a.png", "b.jpg", "c.NEF"]
    assert [bool(error) for error in table["error"]] == [False, True, True]
    assert summary.failed == 2
    assert (summary.left_out.reasons, summary.left_out.lost) == ({"not an image": 1}, 0)


def test_nothing_is_left_of_what_cannot_be(run_dir: Path, image_folder: Path, tmp_path: Path) -> None:
    for run, images, output in (
        (tmp_path / "none", image_folder, tmp_path / "o.csv"),
        (run_dir, tmp_path, tmp_path / "o.csv"),
        (run_dir, image_folder, tmp_path),
        (run_dir, image_folder, tmp_path / "none" / "o.csv"),
    ):
        with pytest.raises(PipelineError) as caught:
            predict(run, str(images), output)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("task", "link", "header", "cells"),
    [
        ("regression", "identity", ["predicted"], ["-1.5"]),
        ("multilabel", "sigmoid", ["predicted", "p_old", "p_red"], ["red", "0.182426", "0.817574"]),
    ],
)
def test_numbers_and_label_sets_have_columns_of_their_own(
    task: str, link: str, header: list[str], cells: list[str]
) -> None:
    coef = np.asarray([[-1.5]] if task == "regression" else [[-1.5], [1.5]])
    model = HeadModel("linear", {"coef": coef, "intercept": np.zeros(len(coef))}, link, len(coef))
    names = ("age",) if task == "regression" else ("old", "red")
    head = LoadedHead(model, names, "penultimate", {}, "f", "ridge", task)
    assert TASKS[task].header(names) == header
    assert TASKS[task].cells(head.model.predict_proba(np.ones((1, 1), np.float32))[0], names) == cells


LAYERS = ("blocks.1:avg", "blocks.3:avg")
TINY = ExtractSettings(
    backbone="timm/test_efficientnet",
    weights="random",
    layers=LAYERS,
    run=RunSettings(engine="torch", precision="float32", workers=1),
)


@pytest.fixture(scope="module")
def several(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a cache of three layers, and the run of a head on the two inner ones."""
    root = tmp_path_factory.mktemp("several")
    extract(str(image_folder), root / "c.h5", TINY)
    settings = FitSettings(layers=LAYERS, folds=2, report=False, Cs=(1.0,), learning_curve=False)
    fit_head(root / "c.h5", root / "run", settings)
    head = load_head(root / "run")
    if len(head.layers) == 1:  # so few images may choose either: the head is then widened by hand
        arrays = dict(head.model.arrays)
        widths = open_cache(root / "c.h5").widths
        other = next(name for name in LAYERS if name != head.layer)
        coef = {head.layer: arrays["coef"], other: np.full((len(arrays["coef"]), widths[other]), 0.01)}
        arrays["coef"] = np.concatenate([coef[name] for name in LAYERS], axis=1)
        model = replace(head.model, arrays=arrays)
        save_head(
            root / "run" / "head.safetensors", replace(head, model=model, layer=" + ".join(LAYERS), layers=LAYERS)
        )
    return root


def test_a_head_on_several_layers_predicts_images_as_it_does_their_rows(
    several: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []

    def watched(source: Any, backbone: Any, *args: Any, **options: Any) -> Any:
        computed.append(tuple(layer.name for layer in backbone.layers))
        return choose_engine(source, backbone, *args, **options)

    monkeypatch.setattr("pipeline.embedding.embedder.choose_engine", watched)
    head, cache = load_head(several / "run"), open_cache(several / "c.h5")
    assert head.layers == LAYERS
    expected = head.predict_proba(head.features(cache.layers))
    table = predict(several / "run", str(image_folder), None, TINY.run).to_pandas()
    assert computed == [LAYERS]
    assert np.allclose(table[["p_ant", "p_bee", "p_cat"]], expected, atol=1e-5)


def test_a_cache_is_predicted_from_its_embeddings(
    several: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    shutil.copytree(image_folder, images)
    (images / "bee" / "cut.png").write_bytes((images / "ant" / "00.png").read_bytes()[:900])
    extract(str(images), tmp_path / "c.h5", TINY)
    shutil.rmtree(images)
    monkeypatch.setattr("pipeline.embedding.embedder.choose_engine", None)  # no network runs
    summary = predict(several / "run", str(tmp_path / "c.h5"), tmp_path / "out.csv")
    assert (summary.total, summary.failed) == (25, 1)
    head, cache = load_head(several / "run"), open_cache(tmp_path / "c.h5")
    table = summary.to_pandas()
    assert table.index.tolist() == cache.keys.tolist()
    done = np.asarray(cache.status) == 1
    expected = head.predict_proba(head.features({name: rows[done] for name, rows in cache.layers.items()}))
    assert np.allclose(table.loc[done, ["p_ant", "p_bee", "p_cat"]], expected, atol=1e-5)
    assert table.loc["bee/cut.png", "error"] == cache.reasons()[int(np.flatnonzero(~done)[0])]
    assert table.loc["bee/cut.png", "predicted"] == ""


def test_a_cache_of_other_numbers_is_refused(several: Path, run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"c.h5: expected .*backbone.*extract with the network of the head"):
        predict(several / "run", str(run_dir.parent / "c.h5"), tmp_path / "out.csv")
    # Another layer of the same numbers is no difference: the head does not take it.
    fit_head(several / "c.h5", tmp_path / "run", FitSettings(folds=2, report=False, Cs=(1.0,), learning_curve=False))
    fewer = tmp_path / "fewer.h5"
    images = str(open_cache(several / "c.h5").source["location"])
    extract(images, fewer, replace(TINY, layers=()))
    assert predict(tmp_path / "run", str(fewer), None).total == 24
    with pytest.raises(PipelineError, match=r"layers\[blocks"):
        predict(several / "run", str(fewer), None)


def test_novelty_and_sets_of_a_fitted_run(run_dir: Path, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64), (255, 0, 255)).save(tmp_path / "images" / "flat.png")
    shutil.copy(image_folder / "ant" / "00.png", tmp_path / "images" / "known.png")
    (tmp_path / "images" / "zcut.png").write_bytes((image_folder / "ant" / "00.png").read_bytes()[:900])
    doubt = TrustOptions(coverage=0.8, abstain_confidence=1.0)
    summary = predict(run_dir, str(tmp_path / "images"), tmp_path / "out.csv", doubt=doubt)
    with (tmp_path / "out.csv").open(newline="") as file:
        header = file.readline().strip().split(",")
    assert header == ["key", "predicted", "p_ant", "p_bee", "p_cat", "set", "error"]  # too few rows for novelty
    table = summary.to_pandas()
    assert table["predicted"].tolist() == ["", "", ""]
    assert table.loc["zcut.png", ["set", "error"]].tolist()[0] == ""
    assert np.isfinite(table.loc[["flat.png", "known.png"], "p_ant"]).all()
    assert summary.headlines()[-1] == "no label for 2 of 2 images (confidence below 1)"
    with pytest.raises(PipelineError, match="--abstain-novelty: the run keeps no"):
        predict(run_dir, str(tmp_path / "images"), None, doubt=TrustOptions(abstain_novelty=99))


def test_novelty_is_a_column_where_there_are_enough_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(40):
        side = "left" if i % 2 else "right"
        (tmp_path / "images" / side).mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((32, 32, 3), np.uint8)
        pixels[:, : 16 if i % 2 else 32] = rng.integers(100, 256, 3)
        Image.fromarray(pixels).save(tmp_path / "images" / side / f"{i:02d}.png")
    images = str(tmp_path / "images")
    extract(images, tmp_path / "c.h5", replace(TINY, layers=()))
    fit_head(tmp_path / "c.h5", tmp_path / "run", FitSettings(folds=2, report=False, Cs=(1.0,), learning_curve=False))
    table = predict(tmp_path / "run", str(tmp_path / "c.h5"), None).to_pandas()
    assert table["novelty"].between(0, 100, inclusive="left").all()
    again = predict(tmp_path / "run", images, None, TINY.run).to_pandas()
    assert again["novelty"].tolist() == pytest.approx(table["novelty"].tolist(), abs=5)
    held_back = predict(tmp_path / "run", str(tmp_path / "c.h5"), None, doubt=TrustOptions(abstain_novelty=50))
    empty = held_back.to_pandas()["predicted"] == ""
    assert (empty == (table["novelty"] > 50)).all()
    assert 0 < empty.sum() < 40


def test_images_of_a_group_get_one_answer(run_dir: Path, image_folder: Path, tmp_path: Path) -> None:
    paths = sorted(image_folder.glob("*/*.png"))
    (tmp_path / "cut.png").write_bytes(paths[0].read_bytes()[:600])
    patients = [["p0", "p1", "", "p2"][i % 4] for i in range(len(paths))]
    table = pd.DataFrame({"path": [*map(str, paths), str(tmp_path / "cut.png")], "patient": [*patients, "p3"]})
    table.to_csv(tmp_path / "images.csv", index=False)
    summary = predict(run_dir, str(tmp_path / "images.csv"), tmp_path / "out.csv", per="patient")
    assert summary.groups == tmp_path / "out-per-group.csv"
    assert any("the run was fitted without --per" in line for line in summary.headlines())
    rows, groups = summary.to_pandas(), summary.groups_to_pandas()
    assert groups["group"].tolist() == ["p0", "p1", "", "p2", *[""] * (patients.count("") - 1), "p3"]
    assert groups.loc[groups["group"] == "p3", ["rows", "failed", "predicted", "error"]].to_numpy().tolist() == [
        ["1", "1", "", "every image failed"]
    ]
    its = rows[[patient == "p1" for patient in [*patients, "p3"]]][["p_ant", "p_bee", "p_cat"]].astype(float)
    odds = np.exp(np.log(its.to_numpy()).mean(axis=0))
    found = groups.loc[groups["group"] == "p1", ["p_ant", "p_bee", "p_cat"]].to_numpy(dtype=float)[0]
    assert np.allclose(found, odds / odds.sum(), rtol=1e-3)
    with pytest.raises(PipelineError, match=r"--per patent: expected a column of .*did you mean patient"):
        predict(run_dir, str(tmp_path / "images.csv"), None, per="patent")
    with pytest.raises(PipelineError, match="there are none: name the images by a table"):
        predict(run_dir, str(image_folder), None, per="patient")


def test_images_bring_the_columns_that_the_head_takes(run_dir: Path, image_folder: Path, tmp_path: Path) -> None:
    cache = open_cache(run_dir.parent / "c.h5")
    keys = cache.keys.tolist()
    facts = pd.DataFrame({"key": keys, "age": [20 + i % 7 for i in range(24)], "site": ["a", "b"] * 12})
    facts.to_csv(tmp_path / "facts.csv", index=False)
    settings = FitSettings(
        labels=str(tmp_path / "facts.csv"), features=("age", "site"), folds=2, report=False, Cs=(0.1,), replicates=50
    )
    fit_head(run_dir.parent / "c.h5", tmp_path / "run", settings)
    head = load_head(tmp_path / "run")
    columns = {"age": facts["age"].to_numpy(), "site": facts["site"].to_numpy(dtype=str)}
    expected = head.predict_proba(head.features(cache.layers, columns))

    images = facts.drop(columns="key").assign(path=[str(image_folder / key) for key in keys])
    images.to_csv(tmp_path / "images.csv", index=False)
    found = predict(tmp_path / "run", str(tmp_path / "images.csv"), None).to_pandas()
    assert np.allclose(found[["p_ant", "p_bee", "p_cat"]].to_numpy(dtype=float), expected, atol=1e-4)

    extract(str(tmp_path / "images.csv"), tmp_path / "new.h5", ExtractSettings(run=RunSettings(precision="float32")))
    found = predict(tmp_path / "run", str(tmp_path / "new.h5"), None).to_pandas()
    assert np.allclose(found[["p_ant", "p_bee", "p_cat"]].to_numpy(dtype=float), expected, atol=1e-4)

    images.assign(site="c").to_csv(tmp_path / "other.csv", index=False)
    other = predict(tmp_path / "run", str(tmp_path / "other.csv"), None)
    assert "column 'site': 24 images have a value, or a gap, that no training image has" in other.headlines()
    for given in (str(image_folder), str(run_dir.parent / "c.h5")):
        with pytest.raises(PipelineError, match="expected the column 'age', which the head was fitted with"):
            predict(tmp_path / "run", given, None)
    with pytest.raises(PipelineError, match="--explain: expected a head on embeddings alone"):
        predict(tmp_path / "run", str(tmp_path / "images.csv"), None, explain=tmp_path / "why")
