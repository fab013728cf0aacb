"""The choice among layers and concatenations of a cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.errors import CacheError, HeadError
from pipeline.fitting.layers import LayerChoice, fit_best_layers, layers_to_fit
from pipeline.fitting.rows import Rows, read_rows
from pipeline.fitting.settings import FitSettings
from pipeline.heads.blocks import Blocks
from pipeline.heads.fit import FitOptions
from pipeline.heads.registry import HEADS_OF
from tests.heads.standin import blobs, stand_in

SETTINGS = FitSettings(folds=3)


def rows_of(y: np.ndarray, task: str = "classification", groups: np.ndarray | None = None) -> Rows:
    """Return all rows as training rows, but for a few of the end that measure."""
    split = np.where(np.arange(len(y)) < len(y) - 12, "train", "test")
    names = ("a", "b", "c") if task == "classification" else ("n",)
    return Rows(np.arange(len(y)), y, names, groups, split, "column", task)  # type: ignore[arg-type]


def choose(layers: dict[str, Any], rows: Rows, head: str = "logistic") -> LayerChoice:
    train = rows.of("train")
    groups = None if rows.groups is None else rows.groups[train]
    options = FitOptions(Cs=(0.1, 1.0), folds=3) if head == "logistic" else FitOptions(folds=3)

    def fit(embeddings: Any) -> Any:
        return HEADS_OF[rows.task][head](read_rows(embeddings, rows.index[train]), rows.y[train], groups, options)

    return fit_best_layers(layers, rows, SETTINGS, fit)


def noise(seed: int, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(240, width)).astype(np.float32)


def test_the_layer_that_tells_the_classes_is_chosen_alone() -> None:
    X, y = blobs(spread=0.6)
    choice = choose({"noise": noise(1), "good": X, "more": noise(2)}, rows_of(y))
    assert choice.layers == ("good",)
    assert choice.embeddings is X
    assert choice.scale is None
    assert [entry["layers"] for entry in choice.table[:3]] == [["noise"], ["good"], ["more"]]
    assert len(choice.table) == 5
    assert sum(entry["chosen"] for entry in choice.table) == 1
    of_good = next(entry for entry in choice.table if entry["layers"] == ["good"])
    assert of_good["accuracy"]["value"] > 0.9
    assert of_good["loss"] == min(entry["loss"] for entry in choice.table if entry["tied"])


def test_layers_that_know_different_classes_are_taken_together() -> None:
    y = np.arange(240) % 3
    rng = np.random.default_rng(0)
    first = ((y == 0)[:, None] * 3 + rng.normal(size=(240, 4))).astype(np.float32)
    second = (((y == 1)[:, None] * 3 + rng.normal(size=(240, 3))) * 1e4).astype(np.float32)
    choice = choose({"first": first, "second": second}, rows_of(y))
    assert choice.layers == ("first", "second")
    assert isinstance(choice.embeddings, Blocks)
    assert choice.scale is not None
    assert choice.scale[-1] == pytest.approx(1e4 * (second[:228] / 1e4).var(axis=0).sum() ** 0.5, rel=1e-3)
    assert choice.fitted.model.width == 7
    alone = min(entry["loss"] for entry in choice.table[:2])
    assert choice.table[2]["loss"] < 0.9 * alone


def test_of_equal_layers_the_narrower_is_taken() -> None:
    X, y = blobs(spread=0.6)
    wide = np.concatenate([X, np.zeros((240, 5), np.float32)], axis=1)
    choice = choose({"wide": wide, "narrow": X}, rows_of(y))
    assert choice.layers == ("narrow",)
    assert {tuple(entry["layers"]) for entry in choice.table if entry["tied"]} >= {("wide",), ("narrow",)}


def test_a_head_without_held_out_scores_is_fitted_again_in_each_fold() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=240)
    good = np.stack([y + 0.1 * rng.normal(size=240), rng.normal(size=240)], axis=1).astype(np.float32)
    choice = choose({"noise": noise(1), "good": good}, rows_of(y, "regression"), "ridge")
    assert "good" in choice.layers
    losses = {tuple(entry["layers"]): entry["loss"] for entry in choice.table}
    assert losses["good",] < 0.05 < losses["noise",]
    assert "accuracy" not in choice.table[0]


def test_groups_stay_together() -> None:
    X, y = blobs(spread=0.6)
    choice = choose({"noise": noise(1), "good": X}, rows_of(y, groups=np.arange(240) // 6))
    assert "good" in choice.layers


def test_which_layers_there_are() -> None:
    cache: Any = stand_in(layers={"b:avg": noise(1), "a:avg": noise(2)})
    assert list(layers_to_fit(cache, FitSettings(layers=("all",)))) == ["b:avg", "a:avg", "penultimate"]
    assert list(layers_to_fit(cache, FitSettings(layers=("penultimate", "a:avg")))) == ["a:avg", "penultimate"]
    assert list(layers_to_fit(cache, FitSettings(layer="a:avg"))) == ["a:avg"]
    with pytest.raises(CacheError, match="no layer 'c'"):
        layers_to_fit(cache, FitSettings(layers=("a:avg", "c")))
    with pytest.raises(HeadError, match="at least 2 layers, got only 'a:avg'"):
        layers_to_fit(cache, FitSettings(layers=("a:avg",)))
    with pytest.raises(HeadError, match="the cache has only 'penultimate'"):
        layers_to_fit(stand_in(), FitSettings(layers=("all",)))  # type: ignore[arg-type]
