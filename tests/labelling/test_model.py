from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.labelling import model
from tests.labelling.sample import pixels


def data(count: int = 240) -> tuple[Any, Any]:
    from sklearn.datasets import load_digits

    X = pixels(count).astype(np.float32)
    X -= X.mean(axis=0)
    return X / np.float32(np.sqrt(np.square(X).sum(axis=1).mean())), load_digits().target[:count].astype(np.int64)


def test_classes_are_those_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    X, y = data()
    own = model.fit("classification", X, y, 10).outputs(X)
    theirs = LogisticRegression(C=1 / model.PENALTY, tol=1e-6, max_iter=2000).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(own, theirs, atol=0.02)
    assert own.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_label_sets_are_a_logistic_regression_each() -> None:
    from sklearn.linear_model import LogisticRegression

    X, y = data()
    sets = np.stack([y % 2 == 0, y > 6], axis=1)
    own = model.fit("multilabel", X, sets, 2).outputs(X)
    for k in range(2):
        theirs = LogisticRegression(C=1 / model.PENALTY, tol=1e-6, max_iter=2000).fit(X, sets[:, k]).predict_proba(X)
        np.testing.assert_allclose(own[:, k], theirs[:, 1], atol=0.02)


@pytest.mark.parametrize("count", [30, 240])
def test_numbers_are_ridge_regression_with_few_and_with_many_rows(count: int) -> None:
    from sklearn.linear_model import Ridge

    X, y = data(count)
    own = model.fit("regression", X, y.astype(float), 1).outputs(X)[:, 0]
    np.testing.assert_allclose(own, Ridge(alpha=model._NUMBER_PENALTY).fit(X, y).predict(X), atol=1e-3)


def test_a_warm_start_comes_to_the_same_head_also_with_a_new_class() -> None:
    X, y = data()
    first = model.fit("classification", X[y < 9], y[y < 9], 9)
    warm = model.fit("classification", X, y, 10, first.weights).outputs(X)
    np.testing.assert_allclose(warm, model.fit("classification", X, y, 10).outputs(X), atol=0.03)


def test_rows_out_of_fold_are_predicted_by_heads_that_have_not_seen_them() -> None:
    X, y = data(100)
    wrong = y.copy()
    wrong[7] = (y[7] + 1) % 10
    inside = model.fit("classification", X, wrong, 10).outputs(X)
    outside = model.out_of_fold("classification", X, wrong, 10)
    assert inside[7, wrong[7]] > outside[7, wrong[7]]
    assert outside.argmax(axis=1)[7] == y[7]
    assert (outside.argmax(axis=1) == y).mean() < (inside.argmax(axis=1) == wrong).mean()


def test_doubt_is_largest_between_two_classes() -> None:
    outputs = np.array([[0.5, 0.5, 0.0], [0.9, 0.05, 0.05], [1.0, 0.0, 0.0]], np.float32)
    assert model.doubt("classification", outputs).tolist() == pytest.approx([1.0, 0.15, 0.0], abs=1e-6)
    assert model.doubt("multilabel", outputs).tolist() == pytest.approx([1.0, 0.2, 0.0], abs=1e-6)


def test_decisions_differ_where_predictions_do() -> None:
    sets = np.array([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.9, 0.9, 0.1], [0.8, 0.2, 0.0]], np.float32)
    codes = model.decided("multilabel", sets).tolist()
    assert codes[0] == codes[3]
    assert len(set(codes)) == 3
    numbers = model.decided("regression", np.array([[0.5], [0.5001], [0.7]], np.float32)).tolist()
    assert numbers[0] == numbers[1] != numbers[2]
