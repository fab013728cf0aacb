from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.errors import HeadError
from pipeline.heads import LoadedHead
from pipeline.heads.contributions import Contributions, check_linear
from pipeline.heads.model import HeadModel

D, K = 6, 4


def head_of(kind: str, link: str = "softmax", task: str = "classification", outputs: int = K) -> LoadedHead:
    rng = np.random.default_rng(0)
    arrays = {"coef": rng.normal(size=(outputs, D)), "intercept": rng.normal(size=outputs)}
    names = tuple("abcdefgh"[:outputs])
    return LoadedHead(HeadModel(kind, arrays, link, outputs), names, "penultimate", {}, "f", "logistic", task)


def seen(count: int = 5) -> tuple[Any, Any]:
    features = np.random.default_rng(1).normal(size=(count, 3, 2, D)).astype(np.float32)
    return features, features.mean(axis=(1, 2))


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_mean_of_a_map_is_the_score_and_scores_are_those_of_the_head_up_to_their_mean(kind: str) -> None:
    head, (features, X) = head_of(kind), seen()
    found = Contributions(head)
    classes = np.tile(np.arange(K), (len(X), 1))
    maps = found.maps(features, X, classes)
    assert maps.shape == (5, K, 3, 2)
    expected = head.model.scores(X)
    assert maps.mean(axis=(2, 3)) == pytest.approx(expected - expected.mean(axis=1, keepdims=True), abs=1e-6)
    assert found.scores(X) == pytest.approx(maps.mean(axis=(2, 3)), abs=1e-6)
    # The probabilities are those of the head.
    assert head.model.link_scores(found.scores(X)) == pytest.approx(head.predict_proba(X))


@pytest.mark.parametrize(("link", "task", "outputs"), [("sigmoid", "multilabel", 3), ("identity", "regression", 1)])
def test_scores_of_labels_and_numbers_are_taken_as_they_are(link: str, task: str, outputs: int) -> None:
    head, (features, X) = head_of("linear", link, task, outputs), seen()
    maps = Contributions(head).maps(features, X, np.full((len(X), 1), outputs - 1))
    assert maps.mean(axis=(2, 3))[:, 0] == pytest.approx(head.model.scores(X)[:, -1], abs=1e-6)


def test_a_position_contributes_what_the_weights_make_of_it() -> None:
    head, (features, X) = head_of("linear", "identity", "regression", 1), seen(1)
    maps = Contributions(head).maps(features, X, np.zeros((1, 1), np.int64))
    coef, intercept = head.model.arrays["coef"][0], head.model.arrays["intercept"][0]
    assert maps[0, 0, 2, 1] == pytest.approx(features[0, 2, 1] @ coef + intercept, abs=1e-6)


def test_two_classes_of_which_one_has_no_weights_both_have_a_map() -> None:
    coef = np.stack([np.zeros(D), np.arange(1.0, D + 1)])
    model = HeadModel("linear", {"coef": coef, "intercept": np.zeros(2)}, "softmax", 2)
    head, (features, X) = LoadedHead(model, ("a", "b"), "penultimate", {}, "f", "logistic"), seen()
    maps = Contributions(head).maps(features, X, np.tile([0, 1], (len(X), 1)))
    assert maps[:, 0] == pytest.approx(-maps[:, 1])
    assert np.abs(maps[:, 0]).min() > 0


def test_other_heads_are_refused_by_name() -> None:
    model = HeadModel("knn", {}, "softmax", 2)
    with pytest.raises(HeadError, match="the knn head is not linear"):
        check_linear(LoadedHead(model, ("a", "b"), "penultimate", {}, "f", "knn"))
    linear = head_of("linear")
    several = LoadedHead(linear.model, linear.class_names, "x + y", {}, "f", "logistic", layers=("x", "y"))
    with pytest.raises(HeadError, match=r"layers x \+ y"):
        check_linear(several)
