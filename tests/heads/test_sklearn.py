from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin

from pipeline.errors import HeadError
from pipeline.heads.fit import FitOptions
from pipeline.heads.registry import HEADS, MULTILABEL_HEADS, REGRESSION_HEADS, find_head
from pipeline.heads.sklearn import estimator_by_name
from tests.heads.standin import blobs

if TYPE_CHECKING:
    from numpy.typing import NDArray


def targets(task: str) -> tuple[NDArray[np.float32], NDArray[Any]]:
    X, y = blobs(150)
    if task == "classification":
        return X, y
    if task == "multilabel":
        return X, np.stack([X[:, 0] > 0, X[:, 1] + X[:, 2] > 0.5, X[:, 3] > 1], axis=1)
    return X, np.exp((X @ np.arange(12)) / 40)


@pytest.mark.parametrize(
    ("name", "task", "kind"),
    [
        ("sklearn.linear_model:LogisticRegression", "classification", "linear"),
        ("sklearn.linear_model:Perceptron", "classification", "linear"),
        ("sklearn.svm:SVC", "classification", "estimator"),
        ("sklearn.ensemble:ExtraTreesClassifier", "classification", "estimator"),
        ("sklearn.svm:LinearSVC", "multilabel", "linear"),
        ("sklearn.neighbors:KNeighborsClassifier", "multilabel", "estimator"),
        ("sklearn.linear_model:HuberRegressor", "regression", "linear"),
        # It has coef_, and yet predicts exponentials.
        ("sklearn.linear_model:PoissonRegressor", "regression", "estimator"),
        ("sklearn.tree:DecisionTreeRegressor", "regression", "estimator"),
    ],
)
def test_any_estimator_predicts_as_itself(name: str, task: str, kind: str) -> None:
    X, y = targets(task)
    fitted = estimator_by_name(name, task)(X, y, None, FitOptions(folds=3))
    assert fitted.model.kind == kind
    scores = fitted.model.scores(X)
    theirs = fitted.estimator.predict(X)
    if task == "classification":
        np.testing.assert_array_equal(scores.argmax(axis=1), theirs)
    elif task == "multilabel":
        np.testing.assert_array_equal(scores > 0, theirs == 1)
    else:
        np.testing.assert_allclose(scores[:, 0], theirs, rtol=1e-4)
    assert (fitted.oof_scores is None) == (task == "regression")


@pytest.mark.parametrize("n_classes", [2, 3, 4])
@pytest.mark.parametrize("shape", ["ovo", "ovr"])
def test_columns_of_pairs_are_not_taken_for_classes(n_classes: int, shape: str) -> None:
    X, y = blobs(120, n_classes=n_classes, spread=2.0)
    options = FitOptions(folds=3, params={"decision_function_shape": shape})
    fitted = estimator_by_name("sklearn.svm:SVC", "classification")(X, y, None, options)
    np.testing.assert_array_equal(fitted.model.scores(X).argmax(axis=1), fitted.estimator.predict(X))
    pairs = shape == "ovo" and n_classes > 2
    assert fitted.chosen["scores"] == ("predict" if pairs else "decision_function")
    assert bool(fitted.warnings) == pairs


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(
    "name",
    ["pipeline.heads:RidgeHead", "pipeline.heads:CentroidHead", "sklearn.linear_model:RidgeClassifier",
     "sklearn.discriminant_analysis:LinearDiscriminantAnalysis", "sklearn.linear_model:SGDClassifier"],
)  # fmt: skip
def test_linear_estimators_of_any_shape_are_arrays(name: str, n_classes: int) -> None:
    X, y = blobs(90, n_classes=n_classes)
    fitted = estimator_by_name(name, "classification")(X, y, None, FitOptions(folds=3))
    assert fitted.model.kind == "linear"
    np.testing.assert_array_equal(fitted.model.scores(X).argmax(axis=1), fitted.estimator.predict(X))


class OnlyPredicts(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of somebody's own, with the least that scikit-learn asks for."""

    def __init__(self, column: int = 0) -> None:
        self.column = column

    def fit(self, X: Any, y: Any) -> OnlyPredicts:
        self.classes_ = np.unique(y)
        self.n_features_in_ = X.shape[1]
        return self

    def predict(self, X: Any) -> Any:
        return (X[:, self.column] > 0).astype(int)


def test_an_estimator_without_scores_serves_too() -> None:
    X, y = blobs(60, n_classes=2)
    options = FitOptions(folds=2, params={"column": 3})
    fitted = estimator_by_name(f"{__name__}:OnlyPredicts", "classification")(X, y, None, options)
    np.testing.assert_array_equal(fitted.model.scores(X).argmax(axis=1), X[:, 3] > 0)


@pytest.mark.parametrize("name", ["sklearn.dummy:DummyClassifier", "sklearn.tree:DecisionTreeClassifier"])
def test_probabilities_that_tie_are_taken_for_what_they_are(name: str) -> None:
    X, y = np.ones((24, 3), dtype=np.float32), np.arange(24) % 2
    fitted = estimator_by_name(name, "classification")(X, y, None, FitOptions(folds=3))
    assert fitted.chosen["scores"] == "predict_proba"
    assert not fitted.warnings
    np.testing.assert_allclose(fitted.model.predict_proba(X), 0.5)


@pytest.mark.parametrize("head", ["ridge", "lda", "centroid", "knn", "svm"])
def test_heads_that_cannot_tell_the_classes_apart_keep_their_scores(head: str) -> None:
    X, y = np.ones((24, 3), dtype=np.float32), np.arange(24) % 2
    fitted = find_head(head)(X, y, None, FitOptions(folds=3))
    assert fitted.model.kind != "estimator"
    np.testing.assert_allclose(fitted.model.predict_proba(X), 0.5, atol=1e-6)


class BlindBeyondTheTrainingRows(OnlyPredicts):
    """A classifier whose probabilities are NaN where a row is far from all it knows, as of a narrow kernel."""

    def predict_proba(self, X: Any) -> Any:
        share = np.where(np.abs(X[:, :1]) > 100, np.nan, X[:, :1] > 0)
        return np.hstack([1 - share, share])


def test_scores_that_are_not_finite_are_refused() -> None:
    X, y = blobs(60, n_classes=2)
    X[7, 0] = 1000.0  # a row that no fold but its own knows
    fit = estimator_by_name(f"{__name__}:BlindBeyondTheTrainingRows", "classification")
    with pytest.raises(HeadError, match=r"BlindBeyond.*its scores of 1 of \d+ rows are not finite"):
        fit(X, y, None, FitOptions(folds=2))
    model = fit(X, y, None, FitOptions(folds=2, calibrate=False)).model
    with pytest.raises(HeadError, match="its scores of 1 of 60 rows are not finite"):
        model.scores(X)
    assert np.isfinite(model.scores(X[:7])).all()


@pytest.mark.parametrize("head", ["logistic", "svm", "centroid", "lda", "sklearn.svm:SVC"])
def test_classes_of_one_or_two_rows_are_no_reason_to_warn(head: str) -> None:
    X, y = blobs(30, n_classes=12)
    y[:12] = np.arange(12)
    X, y = np.vstack([X[:12], X[:3]]), np.append(y[:12], y[:3])
    fit = estimator_by_name(head, "classification") if ":" in head else find_head(head)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not [text for text in fit(X, y, None, FitOptions(folds=2)).warnings if "unique classes" in text]


def stacked() -> Any:
    from sklearn.ensemble import StackingClassifier
    from sklearn.linear_model import LogisticRegression

    return StackingClassifier([("a", LogisticRegression()), ("b", OnlyPredicts())], cv=2)


def test_an_estimator_that_predicts_only_once_fitted_is_one() -> None:
    X, y = blobs(60, n_classes=2)
    fitted = estimator_by_name(f"{__name__}:stacked", "classification")(X, y, None, FitOptions(folds=2))
    np.testing.assert_array_equal(fitted.model.scores(X).argmax(axis=1), fitted.estimator.predict(X))


def nested() -> Any:
    from sklearn.ensemble import BaggingClassifier
    from sklearn.linear_model import LogisticRegression

    return BaggingClassifier(LogisticRegression(), n_estimators=2)


def test_settings_reach_nested_estimators() -> None:
    X, y = blobs(60)
    options = FitOptions(folds=2, seed=7, params={"estimator__C": 0.25})
    fitted = estimator_by_name(f"{__name__}:nested", "classification")(X, y, None, options)
    assert fitted.estimator.estimators_[0].C == 0.25
    assert fitted.estimator.random_state == 7


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("sklearn.svm.SVC", "classification", "expected --estimator module:Class"),
        ("no.such:SVC", "classification", "cannot import no.such"),
        (".svm:SVC", "classification", "cannot import"),
        ("sklearn.svm:SVCC", "classification", "did you mean SVC"),
        ("sklearn.pipeline:Pipeline", "classification", "cannot be made without arguments"),
        ("collections:Counter", "classification", "is not a scikit-learn estimator"),
        ("sklearn.svm:SVR", "classification", "is not a classifier"),
        ("sklearn.svm:SVC", "regression", "is not a regressor"),
    ],
)
def test_what_is_no_estimator_is_one_line(name: str, task: str, message: str) -> None:
    with pytest.raises(HeadError, match=message) as caught:
        estimator_by_name(name, task)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sklearn.svm:SVC", {"params": {"c": 1}}, "no setting 'c': "),
        ("sklearn.svm:SVC", {"params": {"C": -1}}, "SVC fails .*'C' parameter"),
        ("sklearn.svm:SVC", {"params": {"kernel": 3}}, "SVC fails"),
        ("sklearn.naive_bayes:GaussianNB", {"class_weight": "balanced"}, "no class_weight"),
    ],
)
def test_wrong_settings_are_one_line(name: str, changes: dict[str, Any], message: str) -> None:
    X, y = blobs(60)
    with pytest.raises(HeadError, match=message) as caught:
        estimator_by_name(name, "classification")(X, y, None, FitOptions(folds=2, **changes))
    assert "\n" not in str(caught.value)


def test_what_does_not_converge_says_so() -> None:
    X, y = blobs(60)
    options = FitOptions(folds=2, params={"max_iter": 1})
    fitted = estimator_by_name("sklearn.linear_model:LogisticRegression", "classification")(X, y, None, options)
    assert len(fitted.warnings) == 1
    assert fitted.warnings[0].startswith("ConvergenceWarning: ")


@pytest.mark.parametrize("name", sorted(HEADS.keys() - {"zero-shot"}))
def test_our_own_heads_take_settings_and_refuse_others(name: str) -> None:
    settings: dict[str, dict[str, Any]] = {
        "logistic": {"max_passes": 50},
        "ridge": {"alphas": (3.0,)},
        "lda": {"shrinkage": 0.5},
        "svm": {"C": 0.5},
        "knn": {"n_neighbors": 3},
        "centroid": {},
        "linear": {"learning_rates": (0.3,)},
        "mlp": {"hidden_layer_sizes": (8,)},
    }
    setting = settings[name]
    X, y = blobs(60)
    quick: dict[str, Any] = {"Cs": (0.1,), "folds": 2}
    estimator = find_head(name)(X, y, None, FitOptions(params=setting, **quick)).estimator
    estimator = estimator[-1] if hasattr(estimator, "steps") else estimator
    assert setting.items() <= estimator.get_params().items()
    with pytest.raises(HeadError, match=f"the {name} head has no setting 'colour'"):
        find_head(name)(X, y, None, FitOptions(params={"colour": 1}, **quick))


@pytest.mark.parametrize("name", sorted(HEADS.keys() - {"zero-shot"}))
def test_balanced_helps_the_rare_class_or_is_refused(name: str) -> None:
    X, y = blobs(900, 6, 2, spread=2.5)
    kept = (y == 0) | (np.arange(len(y)) % 20 == 1)
    X, y = X[kept], y[kept]
    options: dict[str, Any] = {"Cs": (0.1,), "folds": 2, "calibrate": False}
    if name in ("knn", "mlp"):
        with pytest.raises(HeadError, match=f"the {name} head has no class weights"):
            find_head(name)(X, y, None, FitOptions(class_weight="balanced", **options))
        return

    def recall(weight: Any) -> float:
        model = find_head(name)(X, y, None, FitOptions(class_weight=weight, **options)).model
        return float((model.scores(X).argmax(axis=1)[y == 1] == 1).mean())

    assert recall("balanced") > 0.5
    assert recall("balanced") >= recall(None) + (0.1 if name != "centroid" else 0)


def test_scaling_is_folded_into_the_weights() -> None:
    X, y = blobs(200)
    X = X * np.geomspace(0.01, 100, X.shape[1]).astype(np.float32)
    for name in ("ridge", "lda", "svm", "centroid"):
        fitted = find_head(name)(X, y, None, FitOptions(scaling="standard", calibrate=False))
        assert fitted.model.kind == "linear"
        np.testing.assert_array_equal(fitted.model.scores(X).argmax(axis=1), fitted.estimator.predict(X))
    with pytest.raises(HeadError, match="no --scaling"):
        find_head("knn")(X, y, None, FitOptions(scaling="standard"))


@pytest.mark.parametrize("name", sorted(MULTILABEL_HEADS))
def test_label_sets_are_scikit_learns_one_by_one(name: str) -> None:
    X, y = targets("multilabel")
    fitted = MULTILABEL_HEADS[name](X, y, None, FitOptions(Cs=(0.1,), folds=3))
    assert fitted.model.link == "sigmoid"
    assert fitted.oof_scores is not None
    assert fitted.oof_scores.shape == y.shape
    assert ((fitted.oof_scores > 0) == y).mean() > 0.8
    if name == "logistic":
        from sklearn.linear_model import LogisticRegression

        for k in range(3):
            theirs = LogisticRegression(C=0.1, tol=1e-8).fit(X, y[:, k])
            np.testing.assert_allclose(fitted.model.predict_proba(X)[:, k], theirs.predict_proba(X)[:, 1], atol=5e-3)
        np.testing.assert_array_equal(fitted.estimator.predict(X), fitted.model.scores(X) > 0)
    assert fitted.refit is not None
    assert fitted.refit(X[:5], np.zeros((5, 3), dtype=np.bool_)) is None
    again = fitted.refit(X, y)
    assert again is not None
    np.testing.assert_allclose(again.scores(X), fitted.model.scores(X), rtol=0.05, atol=0.2)


def test_heads_of_other_tasks_are_refused() -> None:
    with pytest.raises(HeadError, match="the knn head does not fit the task regression: take --head ridge"):
        find_head("knn", "regression")
    assert set(REGRESSION_HEADS) == {"ridge"}
