from __future__ import annotations

import warnings
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from sklearn.exceptions import SkipTestWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import check_estimator

from pipeline.evaluation.splits import fold_numbers
from pipeline.heads import CentroidHead, KnnHead, LdaHead, LogisticHead, LogisticSweep, RidgeHead, RidgeRegressionHead
from pipeline.heads.solver.arrays import NumpyArrays
from pipeline.heads.solver.fold_path import ALL_ROWS, PathPoint
from pipeline.heads.solver.lbfgs import CurvaturePairs
from pipeline.heads.solver.path import SoftmaxPath
from pipeline.heads.solver.preconditioner import Preconditioner
from pipeline.heads.solver.torch_arrays import TorchArrays
from tests.heads.standin import blobs

if TYPE_CHECKING:
    from numpy.typing import NDArray


def objective(X: NDArray[Any], y: NDArray[Any], c: float, coef: NDArray[Any], intercept: NDArray[Any]) -> float:
    """scikit-learn's objective, in float64, written from its documentation."""
    if len(coef) == 1:
        sign = np.where(y == 1, 1.0, -1.0)
        loss = np.logaddexp(0, -sign * (X.astype(np.float64) @ coef[0] + intercept[0])).sum()
    else:
        scores = X.astype(np.float64) @ coef.T + intercept
        loss = (logsumexp(scores, axis=1) - scores[np.arange(len(y)), y]).sum()
    return float(c * loss + 0.5 * (coef.astype(np.float64) ** 2).sum())


def reference(X: NDArray[Any], y: NDArray[Any], c: float) -> LogisticRegression:
    return LogisticRegression(C=c, tol=1e-10, max_iter=20_000).fit(X.astype(np.float64), y)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_classes=st.integers(2, 5),
    log_c=st.floats(-4, 2),
    log_scale=st.floats(-2, 2),
    shift=st.floats(-20, 20),
)
def test_the_optimum_is_scikit_learns(seed: int, n_classes: int, log_c: float, log_scale: float, shift: float) -> None:
    X, y = blobs(120, 6, n_classes, seed=seed, spread=2.0)
    X = ((X + shift) * 10**log_scale).astype(np.float32)
    # Beyond this the reference itself needs minutes; C counts in units of the data's scale.
    c = 10**log_c / 10 ** (2 * log_scale)
    ours = LogisticHead(C=c, tol=1e-5).fit(X, y)
    # The reference sees centred data, which leaves its optimum where it is and spares it the conditioning.
    mean = X.mean(axis=0, dtype=np.float64)
    theirs = reference(X - mean, y, c)
    best = objective(X - mean, y, c, theirs.coef_, theirs.intercept_)
    assert ours.converged_
    assert objective(X, y, c, ours.coef_, ours.intercept_) <= best * (1 + 1e-4) + 1e-9


@pytest.mark.parametrize("arrays", [NumpyArrays(), TorchArrays("cpu", double=True)])
@pytest.mark.parametrize("n_pairs", [1, 4, 9, 23])
def test_the_direction_is_that_of_bfgs(n_pairs: int, arrays: NumpyArrays) -> None:
    """Against the update formula itself, as pairs drop out, C changes and the basis turns."""
    k, d, most = 2, 4, 4
    rng = np.random.default_rng(n_pairs)
    hessian = rng.normal(size=(k * (d + 1), k * (d + 1)))
    hessian = hessian @ hessian.T
    penalty = np.ones((k, d + 1))
    penalty[:, -1] = 0.0
    curvature = arrays.exact(rng.uniform(0.5, 2.0, size=(k, d + 1)))
    pairs, steps = CurvaturePairs(most, arrays), []
    for number in range(n_pairs):
        c = 10.0 ** (number % 3)
        step = rng.normal(size=(k, d + 1))
        steps.append(step.ravel())
        pairs.add(arrays.exact(step), arrays.exact((hessian @ step.ravel()).reshape(k, d + 1)))
        if number == n_pairs // 2:
            turned = np.linalg.qr(rng.normal(size=(d, d)))[0]
            pairs.rotate(arrays.exact(turned))
            whole = np.kron(np.eye(k), np.block([[turned, np.zeros((d, 1))], [np.zeros((1, d)), np.ones((1, 1))]]))
            steps, hessian = [s @ whole for s in steps], whole.T @ hessian @ whole
        preconditioner = Preconditioner(arrays.eye(k), curvature)
        gradient = rng.normal(size=(k, d + 1))
        found = [
            arrays.to_numpy(pairs.solve(arrays.exact(gradient), at, preconditioner)).ravel() for at in (c, c, 2 * c)
        ]
        inverse = np.diag(1.0 / (c * arrays.to_numpy(curvature) + penalty).ravel())
        changes = [c * hessian @ s + penalty.ravel() * s for s in steps[-most:]]
        scales = [(s @ y) / (y @ inverse @ y) for s, y in zip(steps[-most:], changes, strict=True)]
        inverse *= np.clip(sorted(scales)[(len(scales) - 1) // 2], 0.05, 1.0)
        for s, y in zip(steps[-most:], changes, strict=True):
            left = np.eye(len(s)) - np.outer(s, y) / (s @ y)
            inverse = left @ inverse @ left.T + np.outer(s, s) / (s @ y)
        np.testing.assert_allclose(found[0], inverse @ gradient.ravel(), rtol=1e-6, atol=1e-9)
        np.testing.assert_array_equal(found[0], found[1])
        assert not np.allclose(found[0], found[2])


@pytest.mark.parametrize(("rows", "standardise"), [(90, False), (30, False), (90, True)])
def test_numpy_and_torch_walk_the_same_path(rows: int, standardise: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with fewer rows than features, and over folds with weights."""
    X, y = blobs(rows, 40, 3)
    fold, weight = fold_numbers(y, 3, seed=0), np.linspace(0.5, 2.0, rows)

    def solved() -> list[list[PathPoint]]:
        path = SoftmaxPath(X, y, 3, row_weight=weight, fold=fold, standardise=standardise)
        return path.solve([(number, [0.01, 1.0, 10.0]) for number in (0, 1, 2, ALL_ROWS)])

    by_numpy = solved()
    monkeypatch.setattr("pipeline.heads.solver.path.arrays_for", lambda *asked: TorchArrays("cpu", double=True))
    for ours, theirs in zip(chain(*by_numpy), chain(*solved()), strict=True):
        assert ours.passes == theirs.passes
        np.testing.assert_allclose(ours.coef, theirs.coef, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(ours.held_out.losses, theirs.held_out.losses, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(ours.held_out.hits, theirs.held_out.hits)


@pytest.mark.parametrize("rows", [60, 8])  # more and fewer than features
def test_rows_taken_to_the_basis_give_the_same_path(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = blobs(rows, 12, 3)
    fold = np.arange(rows) % 2

    def points(expected_passes: int) -> list[PathPoint]:
        monkeypatch.setattr("pipeline.heads.solver.path._EXPECTED_PASSES", expected_passes)
        path = SoftmaxPath(X, y, 3, fold=fold)
        (below,) = path.solve([(0, [0.01, 0.1])], tol=1e-6)
        # A second walk of the same data starts from the first one's solution.
        (above,) = path.solve([(0, [1.0, 10.0])], starts=[below[-1]], tol=1e-6)
        return [*below, *above]

    for one, other in zip(points(0), points(1000), strict=True):
        assert one.passes == other.passes
        assert one.objective == pytest.approx(other.objective, rel=1e-9)
        np.testing.assert_allclose(one.coef, other.coef, atol=1e-6)
        np.testing.assert_allclose(one.intercept, other.intercept, atol=1e-6)


def test_what_it_reports_is_its_objective() -> None:
    X, y = blobs()
    head = LogisticHead(C=0.3).fit(X, y)
    assert head.objective_ == pytest.approx(objective(X, y, 0.3, head.coef_, head.intercept_), rel=1e-5)


def test_every_value_and_fold_of_a_walk_is_solved() -> None:
    X, y = blobs(300)
    fold = fold_numbers(y, 3, seed=0)
    values = [1e-3, 1e-2, 1e-1, 1.0, 10.0]
    path = SoftmaxPath(X, y, 3, fold=fold)
    walked = path.solve([*((f, values) for f in range(3)), (ALL_ROWS, values)])
    for number, points in zip([0, 1, 2, ALL_ROWS], walked, strict=True):
        train = fold != number
        for point in points:
            theirs = reference(X[train], y[train], point.C)
            best = objective(X[train], y[train], point.C, theirs.coef_, theirs.intercept_)
            assert point.converged
            assert point.objective <= best * (1 + 1e-4)
            if number != ALL_ROWS:
                scores = X[~train] @ point.coef.T + point.intercept
                hit = (scores.argmax(axis=1) == y[~train]).mean()
                loss = (logsumexp(scores, axis=1) - scores[np.arange(len(scores)), y[~train]]).mean()
                assert point.held_out.accuracy == pytest.approx(hit)
                assert point.held_out.log_loss == pytest.approx(loss, rel=1e-4)


def test_large_values_of_c_are_solved_beyond_the_rounding_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = blobs(600, 30, 3, spread=1.5)
    X += np.float32(5)
    values = [10.0**e for e in range(-2, 6)]
    ((*best,),) = SoftmaxPath(X, y, 3).solve([(ALL_ROWS, values)], tol=1e-7)

    class OnlyFloat32(TorchArrays):
        def doubled(self) -> NumpyArrays:
            return self

    def solved(arrays: TorchArrays) -> list[PathPoint]:
        monkeypatch.setattr("pipeline.heads.solver.path.arrays_for", lambda *asked: arrays)
        (points,) = SoftmaxPath(X, y, 3).solve([(ALL_ROWS, values)])
        return points

    assert not all(point.converged for point in solved(OnlyFloat32("cpu", double=False)))
    for point, optimum in zip(solved(TorchArrays("cpu", double=False)), best, strict=True):
        assert point.converged
        assert abs(point.objective - optimum.objective) <= 1e-4 * optimum.objective


def test_the_bound_holds() -> None:
    X, y = blobs()
    theirs = reference(X, y, 1.0)
    best = objective(X, y, 1.0, theirs.coef_, theirs.intercept_)
    for tol in (1e-1, 1e-2, 1e-3):
        ((point,),) = SoftmaxPath(X, y, 3).solve([(ALL_ROWS, [1.0])], tol=tol)
        assert (point.objective - best) / best <= point.gap_bound + 1e-6


def test_what_cannot_converge_says_so() -> None:
    X, y = blobs()
    head = LogisticHead(C=10.0, max_passes=2).fit(X, y)
    assert not head.converged_
    assert head.n_iter_ == 2 * 5  # at each of the values on the way


def test_standard_scaling_is_that_of_the_training_rows() -> None:
    X, y = blobs()
    X = X * np.geomspace(0.01, 100, X.shape[1]).astype(np.float32)
    scale = X.std(axis=0, dtype=np.float64)
    head = LogisticHead(C=0.1, scaling="standard", tol=1e-6).fit(X, y)
    theirs = reference(X / scale, y, 0.1)
    best = objective(X / scale, y, 0.1, theirs.coef_, theirs.intercept_)
    assert objective(X / scale, y, 0.1, head.coef_ * scale, head.intercept_) <= best * (1 + 1e-4)


def test_a_fold_never_sees_its_rows() -> None:
    """Out-of-fold scores do not move when a held-out row does."""
    X, y = blobs()
    sweep = LogisticSweep(Cs=(0.1,), cv=4, scaling="standard").fit(X, y)
    changed = X.copy()
    changed[sweep.fold_ == 0] *= 50
    again = LogisticSweep(Cs=(0.1,), cv=4, scaling="standard").fit(changed, y)
    np.testing.assert_array_equal(sweep.fold_, again.fold_)
    rows = sweep.fold_ == 0
    one = _fold_coef(sweep, X, rows)
    two = _fold_coef(again, changed, rows)
    np.testing.assert_allclose(one, two, rtol=0.05, atol=0.02)


def _fold_coef(sweep: LogisticSweep, X: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
    """Recover the fold's weights from its scores, which are linear in the rows."""
    design = np.concatenate([X[rows].astype(np.float64), np.ones((rows.sum(), 1))], axis=1)
    return np.asarray(np.linalg.lstsq(design, sweep.oof_scores_[rows], rcond=None)[0][:-1])


def test_the_choice_follows_the_scores() -> None:
    X, y = blobs(spread=3.0)
    by_loss = LogisticSweep(Cs=(1e-5, 1e-2, 1.0, 1e3), scoring="log_loss").fit(X, y)
    losses = {entry["C"]: entry["log_loss"] for entry in by_loss.sweep_}
    assert losses[by_loss.C_] == min(losses.values())

    by_accuracy = LogisticSweep(Cs=(1e-5, 1e-2, 1.0, 1e3)).fit(X, y)
    scores = {entry["C"]: (entry["accuracy"], entry["log_loss"]) for entry in by_accuracy.sweep_}
    best = max(accuracy for accuracy, _ in scores.values())
    ties = [loss for accuracy, loss in scores.values() if accuracy >= best - (best * (1 - best) / len(y)) ** 0.5]
    assert scores[by_accuracy.C_][0] >= best - (best * (1 - best) / len(y)) ** 0.5
    assert scores[by_accuracy.C_][1] == min(ties)


def test_the_coarse_to_fine_sweep_is_about_as_good_as_the_full_one() -> None:
    X, y = blobs(400, spread=3.0)
    auto, full = LogisticSweep().fit(X, y), LogisticSweep(Cs="full").fit(X, y)
    assert len(full.sweep_) == 45
    assert len(auto.sweep_) < 25
    best = {len(s.sweep_): max(entry["accuracy"] for entry in s.sweep_) for s in (auto, full)}
    assert best[len(auto.sweep_)] >= best[45] - 0.011


def test_class_weights_are_scikit_learns() -> None:
    X, y = blobs(300)
    kept = (y > 0) | (np.arange(len(y)) % 10 == 0)
    X, y = X[kept], y[kept]
    ours = LogisticHead(C=0.1, class_weight="balanced", tol=1e-7).fit(X, y)
    theirs = LogisticRegression(C=0.1, class_weight="balanced", tol=1e-10, max_iter=9999).fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=2e-3)


@pytest.mark.parametrize(
    "head",
    [
        LogisticHead(),
        LogisticSweep(cv=2, Cs=(1.0,)),
        RidgeHead(),
        LdaHead(),
        RidgeRegressionHead(),
        CentroidHead(),
        KnnHead(n_neighbors=3),
    ],
    ids=lambda head: type(head).__name__,
)
def test_scikit_learns_own_checks(head: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        check_estimator(head)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_smallest_c_has_the_direction_of_scikit_learns(n_classes: int) -> None:
    X, y = blobs(30, n_classes=n_classes)  # classes of one size: zero weights would tie everywhere
    head = LogisticHead(C=1e-6).fit(X, y)
    theirs = LogisticRegression(C=1e-6, tol=1e-12).fit(X, y)
    np.testing.assert_allclose(head.coef_, theirs.coef_, rtol=1e-2, atol=1e-9)
    assert (head.predict(X) == y).mean() > 1 / n_classes
    assert not LogisticHead(C=1e-6).fit(np.ones_like(X), y).coef_.any()
