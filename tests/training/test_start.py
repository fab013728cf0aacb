from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pipeline.heads import LoadedHead
from pipeline.heads.model import HeadModel
from pipeline.training.start import fit_without_validation

ARRAYS = {"coef": np.zeros((3, 4)), "intercept": np.zeros(3)}
HEAD = LoadedHead(HeadModel("linear", ARRAYS, "softmax", 3, temperature=2.0), ("a", "b", "c"), "x", {}, "f", "logistic")
RUN: dict[str, Any] = {"chosen": {"C": 0.5}, "settings": {"scaling": "none", "class_weight": "balanced"}}


def rows(classes: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    y = rng.integers(classes, size=90) * (rng.random(90) < 0.8)
    return (rng.normal(size=(90, 4)) + y[:, None] * [1.0, -1.0, 0.5, 0.0]).astype(np.float32), y.astype(np.int64)


def test_it_is_the_regression_of_these_rows_at_the_same_settings() -> None:
    X, y = rows(3)
    found = fit_without_validation(HEAD, RUN, X, y)
    assert found is not None
    same = LogisticRegression(C=0.5, class_weight="balanced", tol=1e-8, max_iter=1000).fit(X, y)
    logits = found.model.scores(X)
    np.testing.assert_allclose(logits - logits.mean(1, keepdims=True), same.decision_function(X), atol=0.02)
    assert found.model.temperature == 2.0
    assert found.class_names == HEAD.class_names


def test_two_classes_have_two_rows_of_weights() -> None:
    X, y = rows(2)
    found = fit_without_validation(HEAD, RUN, X, y)
    assert found is not None
    assert found.model.arrays["coef"].shape == (2, 4)
    assert np.mean(found.model.scores(X).argmax(1) == y) > 0.8


@pytest.mark.parametrize("settings", [{"start": "zero-shot"}, {}])
def test_other_heads_are_not_fitted_again(settings: dict[str, str]) -> None:
    X, y = rows(3)
    head = HEAD if settings else replace(HEAD, head="lda")
    assert fit_without_validation(head, {**RUN, "settings": {**RUN["settings"], **settings}}, X, y) is None
