"""Columns beside embeddings in a whole fit: what they add, what they reach alone, and a leak that shows."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.errors import HeadError
from pipeline.fitting.inputs import WEIGHTS
from pipeline.heads import load_head
from pipeline.stages.fit_head import FitResult, FitSettings, fit_head
from tests.heads.standin import StandIn, blobs

if TYPE_CHECKING:
    from pathlib import Path

QUICK: dict[str, Any] = {"replicates": 200, "learning_curve": False, "device": "cpu", "report": False, "folds": 3}


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def run(cache: StandIn, **settings: Any) -> FitResult:
        monkeypatch.setattr(sys.modules["pipeline.stages.fit_head"], "open_cache", lambda path: cache)
        quick = {} if {"head", "estimator", "task"} & settings.keys() else {"Cs": (0.1, 1.0)}
        return fit_head("stand-in.h5", tmp_path / "run", FitSettings(**(QUICK | quick | settings)))

    return run


def planted(rows: int = 300, *, seed: int = 0) -> StandIn:
    """Return hard classes with an informative column, one of noise, one with gaps, and a leak."""
    X, y = blobs(rows, 8, 3, spread=4.0, seed=seed)
    rng = np.random.default_rng(seed)
    gaps = y + rng.normal(0, 0.4, rows)
    gaps[rng.random(rows) < 0.3] = np.nan
    columns = {
        "useful": y + rng.normal(0, 0.4, rows),
        "noise": rng.normal(size=rows),
        "gaps": gaps,
        "code": np.array(["x", "y", "z"])[y],
        "number": y * 1.0 + X[:, 0] / 100,
    }
    return StandIn(X, y, ("ant", "bee", "cat"), columns)


def test_an_informative_column_adds_and_the_run_says_how_much(fit: Any, tmp_path: Path) -> None:
    result = fit(planted(), features=("useful",), report=True)
    found = result.metrics["inputs"]
    embeddings, columns = found["alone"]
    assert [embeddings["inputs"], columns["inputs"]] == ["embeddings", "columns"]
    assert embeddings["others_add"]["low"] > 0
    assert found["all"]["value"] - embeddings["figure"]["value"] == pytest.approx(embeddings["others_add"]["value"])
    assert found["all"]["value"] == result.metrics["test"]["accuracy"]["value"]
    assert "all inputs, columns useful: accuracy" in result.headlines()[-1]
    assert "What the inputs add" in (tmp_path / "run/report.html").read_text()
    assert not any("may hold the label" in note for note in result.notes)


def test_columns_of_noise_get_a_small_weight_and_do_little_harm(fit: Any) -> None:
    cache = planted()
    cache.columns["site"] = np.random.default_rng(5).permutation(np.resize([f"s{i}" for i in range(25)], len(cache)))
    noise, useful = (fit(cache, features=(name,)).metrics["inputs"] for name in ("site", "useful"))
    assert noise["weight"] == min(WEIGHTS)
    assert useful["weight"] > min(WEIGHTS)
    assert abs(noise["alone"][0]["others_add"]["value"]) <= 0.05


def test_the_figure_of_embeddings_alone_is_that_of_a_run_without_columns(fit: Any) -> None:
    found = fit(planted(), features=("noise",)).metrics["inputs"]
    without = fit(planted())
    assert found["alone"][0]["figure"]["value"] == without.metrics["test"]["accuracy"]["value"]
    assert "inputs" not in without.metrics


def test_a_leak_is_named_among_columns_that_are_none(fit: Any) -> None:
    result = fit(planted(), features=("noise", "code", "useful"))
    assert result.metrics["inputs"]["suspects"] == ["code"]
    (note,) = [note for note in result.notes if "may hold the label" in note]
    assert ": code may hold the label" in note


def test_the_saved_head_takes_embeddings_and_columns(fit: Any, tmp_path: Path) -> None:
    cache = planted()
    result = fit(cache, features=("useful", "gaps", "code"))
    head = load_head(tmp_path / "run")
    assert head.columns is not None
    assert head.columns.names == ("useful", "gaps", "code")
    table = result.to_pandas()
    rows = [cache.keys.tolist().index(key) for key in table.index]
    features = head.features({"penultimate": cache.embeddings}, cache.columns)
    expected = table[[f"p_{name}" for name in head.class_names]].to_numpy(dtype=float)
    assert np.allclose(head.predict_proba(features[rows]), expected, atol=1e-4)
    with pytest.raises(HeadError, match="expected the column 'useful', which the head was fitted with"):
        head.features({"penultimate": cache.embeddings})
    with pytest.raises(HeadError, match="and the columns useful, gaps, code"):
        head.predict(cache.embeddings)
    assert json.loads((tmp_path / "run/run.json").read_text())["columns"] == head.columns.to_json()


@pytest.mark.parametrize(
    "settings",
    [
        {"head": "ridge"}, {"head": "lda"}, {"head": "knn"}, {"head": "centroid"}, {"head": "linear"},
        {"estimator": "sklearn.naive_bayes:GaussianNB"}, {"layers": ("penultimate", "inner")}, {"per": "who"},
    ],
    ids=str,
)  # fmt: skip
def test_every_head_takes_columns(fit: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    cache = planted()
    cache.layers["inner"] = cache.embeddings[:, :3] * 7
    cache.columns["who"] = np.array([f"w{i // 6}{label}" for i, label in enumerate(cache.labels)])
    result = fit(cache, features=("useful", "gaps"), **settings)
    assert result.metrics["inputs"]["alone"][0]["others_add"]["value"] > 0
    head = load_head(tmp_path / "run", trust=True)
    features = head.features({"penultimate": cache.embeddings, **cache.layers}, cache.columns)
    table = result.to_pandas()
    rows = [cache.keys.tolist().index(key) for key in table.index]
    assert (head.predict(features[rows]) == table["predicted"].to_numpy(dtype=str)).mean() > 0.98


def test_numbers_and_label_sets_take_columns(fit: Any) -> None:
    cache = planted()
    cache.columns["dose"] = np.asarray(cache.columns["useful"]) * 2 + cache.embeddings[:, 0]
    found = fit(cache, target="dose", features=("useful",), task="regression").metrics["inputs"]
    assert found["measure"] == "MAE"
    assert found["alone"][0]["others_add"]["high"] < 0
    cache.columns["tags"] = np.array(["a|b", "b", "a"])[cache.labels]
    found = fit(cache, target="tags", features=("useful",), task="multilabel").metrics["inputs"]
    assert found["measure"] == "subset accuracy"
    assert found["alone"][0]["others_add"]["low"] > 0


def test_held_out_training_rows_are_encoded_without_them(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row's out-of-fold score is of an encoder that never saw it: no category of a single fold is known there."""
    from pipeline.fitting import columns

    fitted_on: list[set[int]] = []
    refitted = columns.ColumnBlocks.refitted

    def watched(self: Any, rows: Any) -> Any:
        fitted_on.append(set(rows.tolist()))
        return refitted(self, rows)

    monkeypatch.setattr(columns.ColumnBlocks, "refitted", watched)
    fit(planted(), features=("useful",))
    assert len(fitted_on) == 3 * len(WEIGHTS)
    assert not set.intersection(*fitted_on[:3])  # each row is left out by one of the folds


def test_prompts_take_no_columns(fit: Any) -> None:
    with pytest.raises(HeadError, match="--prompts are weights of embeddings alone"):
        fit(planted(), features=("useful",), prompts="p.csv", start="zero-shot")


def test_several_views_take_no_columns(fit: Any) -> None:
    cache = planted()
    cache.spec = cache.spec | {"preprocess": {"views": "flip"}}
    cache.layers["penultimate@flip"] = cache.embeddings + 1
    with pytest.raises(HeadError, match="--features takes one view of an image, and the cache holds 2: add --no-views"):
        fit(cache, features=("useful",))
    assert fit(cache, features=("useful",), views=False).metrics["inputs"]["all"]["value"] > 0.5
