from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.errors import HeadError
from pipeline.heads.fit import FitOptions
from pipeline.heads.model import HeadModel
from pipeline.heads.registry import find_head
from pipeline.heads.saved import LoadedHead, load_head, save_head
from pipeline.heads.views import on_views

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

VIEWS, WIDTH = 3, 4


def data() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows of three views side by side, of two classes."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    X = rng.normal(size=(60, VIEWS, WIDTH)) + y[:, None, None]
    return X.reshape(60, -1).astype(np.float32), y


@pytest.mark.parametrize("name", ["logistic", "knn", "centroid"])
def test_scores_are_the_mean_over_the_views(name: str) -> None:
    X, y = data()
    fitted = on_views(find_head(name, "classification"), VIEWS)(X, y, None, FitOptions(folds=3))
    assert fitted.model.width == VIEWS * WIDTH
    alone = replace(fitted.model, views=1)
    wanted = np.mean([alone.scores(X[:, i * WIDTH : (i + 1) * WIDTH]) for i in range(VIEWS)], axis=0)
    assert np.allclose(fitted.model.scores(X), wanted)
    if fitted.oof_scores is not None:
        assert fitted.oof_scores.shape == (60, 2)
    assert fitted.refit is not None
    again = fitted.refit(X[:40], y[:40])
    assert again is not None
    assert again.scores(X).shape == (60, 2)


def test_the_views_of_an_image_are_never_on_both_sides_of_a_fold() -> None:
    X, y = data()
    pairs = np.arange(60) // 4
    seen: list[Any] = []

    def fit(X: Any, y: Any, groups: Any, options: FitOptions) -> Any:
        seen.append((X, y, groups))
        return find_head("logistic", "classification")(X, y, groups, options)

    on_views(fit, VIEWS)(X, y, None, FitOptions(folds=3))
    on_views(fit, VIEWS)(X, y, pairs, FitOptions(folds=3))
    (rows, targets, groups), (_, _, own) = seen
    assert rows.shape == (60 * VIEWS, WIDTH)
    assert np.array_equal(rows[3 * VIEWS + 1], X[3, WIDTH : 2 * WIDTH])
    assert np.array_equal(targets, np.repeat(y, VIEWS))
    assert np.array_equal(groups, np.repeat(np.arange(60), VIEWS))
    assert np.array_equal(own, np.repeat(pairs, VIEWS))


def head(**changed: Any) -> LoadedHead:
    arrays = {"coef": np.ones((2, WIDTH)), "intercept": np.zeros(2)}
    model = HeadModel("linear", arrays, "softmax", 2, views=VIEWS)
    layers = ("penultimate", "penultimate@a", "penultimate@b")
    made = LoadedHead(model, ("a", "b"), " + ".join(layers), {}, "f", "logistic", layers=layers)
    return replace(made, **changed)


def test_a_file_keeps_the_number_of_views(tmp_path: Path) -> None:
    save_head(tmp_path / "head.safetensors", head())
    found = load_head(tmp_path)
    assert (found.model.views, found.width) == (VIEWS, VIEWS * WIDTH)
    X, _ = data()
    assert np.array_equal(found.predict_proba(X), head().predict_proba(X))


@pytest.mark.parametrize("views", [2, 4])
def test_another_number_of_views_than_layers_is_refused(views: int, tmp_path: Path) -> None:
    save_head(tmp_path / "head.safetensors", head(model=replace(head().model, views=views)))
    with pytest.raises(HeadError, match=f"expected as many views as layers, found {views} and 3"):
        load_head(tmp_path)
