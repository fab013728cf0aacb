from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp

from pipeline.errors import HeadError
from pipeline.heads.fit import FitOptions
from pipeline.heads.logistic import LogisticHead, LogisticSweep
from pipeline.heads.registry import find_head
from pipeline.heads.saved import LoadedHead, load_head, save_head
from pipeline.heads.texts import ClassTexts

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.heads.model import HeadModel


def problem(
    rows: int = 60, width: int = 6, classes: int = 3
) -> tuple[NDArray[np.float32], NDArray[np.int64], ClassTexts]:
    """Return rows around the directions of texts, of any length."""
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(2 * classes, width))
    of_class = np.repeat(np.arange(classes), 2)
    texts = ClassTexts.of_prompts(vectors, of_class, scale=20.0, bias=-3.0)
    y = np.arange(rows) % classes
    X = (texts.features[y] + 0.4 * rng.normal(size=(rows, width))) * rng.uniform(0.5, 9.0, (rows, 1))
    return X.astype(np.float32), y.astype(np.int64), texts


def test_scores_are_the_encoders_logits_with_the_mean_of_unit_prompts() -> None:
    X, y, texts = problem()
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(6, 6))
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    means = (units[::2] + units[1::2]) / 2
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    expected = 20 * (X / np.linalg.norm(X, axis=1, keepdims=True)) @ means.T - 3
    fitted = find_head("zero-shot")(X, y, None, FitOptions(texts=texts))
    np.testing.assert_allclose(fitted.model.scores(X), expected, atol=1e-6)
    np.testing.assert_allclose(fitted.estimator.decision_function(X), expected, atol=1e-6)
    assert (fitted.estimator.predict(X) == expected.argmax(axis=1)).all()
    assert fitted.chosen == {"scale": 20.0, "bias": -3.0, "prompts": 6}


def test_it_is_saved_and_loaded_like_the_others(tmp_path: Path) -> None:
    X, y, texts = problem()
    model = find_head("zero-shot")(X, y, None, FitOptions(texts=texts)).model
    save_head(tmp_path / "head.safetensors", LoadedHead(model, ("a", "b", "c"), "penultimate", {}, "f", "zero-shot"))
    loaded = load_head(tmp_path / "head.safetensors")
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
    np.testing.assert_allclose(loaded.predict_proba(9 * X), model.predict_proba(X), rtol=1e-5)
    assert np.isfinite(loaded.predict_proba(np.zeros((1, 6), np.float32))).all()


@pytest.mark.parametrize("setting", [{"class_weight": "balanced"}, {"scaling": "standard"}, {"params": {"a": 1}}])
def test_what_it_does_not_read_is_refused(setting: dict[str, Any]) -> None:
    X, y, texts = problem()
    with pytest.raises(HeadError, match="leave --set, --scaling and --balanced out"):
        find_head("zero-shot")(X, y, None, FitOptions(texts=texts, **setting))
    with pytest.raises(HeadError, match="--prompts FILE"):
        find_head("zero-shot")(X, y, None, FitOptions())


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("rows", [5, 60])
def test_the_penalty_pulls_to_the_texts(rows: int, classes: int) -> None:
    """The minimum of the stated objective, found by another solver."""
    X, y, texts = problem(max(rows, classes + 1), classes=classes)
    origin, c, (k, d) = texts.coef_for(X), 0.03, (classes, 6)
    head = LogisticHead(C=c, start_coef=origin, tol=1e-9).fit(X, y)

    def objective(theta: NDArray[np.float64]) -> float:
        weights, intercept = theta[: k * d].reshape(k, d), theta[k * d :]
        scores = X.astype(np.float64) @ weights.T + intercept
        loss = (logsumexp(scores, axis=1) - scores[np.arange(len(y)), y]).sum()
        # Two classes: scikit-learn's C belongs to the difference of the weights.
        return float(c / (2 if k == 2 else 1) * loss + 0.5 * ((weights - origin) ** 2).sum())

    start = np.concatenate([origin.ravel(), np.zeros(k)])
    found = minimize(objective, start, method="BFGS", options={"gtol": 1e-7, "maxiter": 2000})
    weights, intercept = found.x[: k * d].reshape(k, d), found.x[k * d :]
    expected = X.astype(np.float64) @ weights.T + intercept
    scores = head.decision_function(X)
    if k == 2:
        expected = expected[:, 1] - expected[:, 0]
    else:
        expected, scores = (s - s.mean(axis=1, keepdims=True) for s in (expected, scores))
    np.testing.assert_allclose(scores, expected, atol=2e-3)
    assert head.objective_ / (2 if k == 2 else 1) == pytest.approx(found.fun, rel=1e-5)


def test_strong_regularisation_leaves_the_texts_as_they_are() -> None:
    X, y, texts = problem()
    head = LogisticHead(C=1e-9, start_coef=texts.coef_for(X)).fit(X, y)
    np.testing.assert_allclose(head.coef_, texts.coef_for(X), atol=1e-6)


def test_outside_the_rows_the_weights_stay_those_of_the_texts() -> None:
    X, y, texts = problem(rows=4)
    X[:, 5] = 0
    head = LogisticHead(C=10.0, start_coef=texts.coef_for(X)).fit(X, y)
    np.testing.assert_allclose(head.coef_[:, 5], texts.coef_for(X)[:, 5])


def test_few_labels_are_worth_more_with_texts() -> None:
    X, y, texts = problem(rows=600)
    few, rest = np.r_[0:6], np.r_[6:600]
    options = {"folds": 2, "Cs": (1e-6, 1e-3, 1.0)}
    fitted: dict[str, HeadModel] = {}
    for start in ("zero", "zero-shot"):
        given = FitOptions(texts=texts, start=start, **options)  # type: ignore[arg-type]
        fitted[start] = find_head("logistic")(X[few], y[few], None, given).model
    right = {start: (model.scores(X[rest]).argmax(axis=1) == y[rest]).mean() for start, model in fitted.items()}
    assert right["zero-shot"] > right["zero"]


def test_a_start_of_another_shape_is_refused() -> None:
    X, y, _ = problem()
    for head in (LogisticHead(start_coef=np.zeros((2, 6))), LogisticSweep(start_coef=np.zeros((3, 5)))):
        with pytest.raises(ValueError, match=r"expected shape \(3, 6\) for start_coef"):
            head.fit(X, y)
