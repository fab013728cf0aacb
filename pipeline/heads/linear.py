"""Multinomial logistic regression by stochastic gradient, on more rows than fit into memory.

Mean log loss plus ``λ/2 ‖W‖²``: the objective of `LogisticHead` at ``C = 1 / (λ N)``. All learning rates and weight
decays are trained in one stream of minibatches, side by side in one matrix product, and scored on rows set apart.

- Steps are Newton's, of a Kronecker-factored model of the Hessian: the features' covariance, from the first buffer,
  times the curvature of the class shares. A learning rate of 1 is a whole step, whatever the scale of the features,
  and strongly correlated features cost no further passes.
- Iterates are averaged with weights that grow over time, so there is no schedule that must know the end beforehand.

Axes: N rows, D features, K classes, A candidates (pairs of learning rate and weight decay), B rows of a minibatch.

References
----------
Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015.
Shamir and Zhang, "Stochastic gradient descent for non-smooth optimization", ICML 2013, for the average.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, column_or_1d

from pipeline.errors import HeadError
from pipeline.evaluation.splits import fold_count, hold_out
from pipeline.heads.logistic import LinearClassifier
from pipeline.heads.softmax_path import threads_for
from pipeline.heads.streaming import StreamedRows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from numpy.typing import ArrayLike, NDArray

_MOST_VALIDATION_ROWS = 100_000
"""Enough to tell accuracies 0.2 points apart; more would only be read again and again."""

_VALIDATION_BUFFER = 64 << 20

_STEPS_BETWEEN_SCORES = (50, 1000)
"""Candidates are scored after every pass, but no more often and no more seldom than this."""

_LEAST_GAIN = 1e-4
"""Relative drop of the log loss that counts as better."""

_WARM_UP = 20
_OPERATIONS_PER_STEP = 12
_MOMENTUM = 0.9
_AVERAGE_POWER = 7
_COVARIANCE_ROWS_PER_FEATURE = 16
_WIDEST_COVARIANCE = 4096
"""Above this width the preconditioner is the features' variances alone."""


class LinearHead(LinearClassifier):
    """Multinomial logistic regression streamed from a memory map, learning rate and weight decay chosen on the way.

    Parameters
    ----------
    learning_rates : sequence of float
        Step lengths to try, in Newton steps.
    weight_decays : sequence of float
        Strengths λ of the L2 penalty to try, in units of the features' mean variance.
    max_epochs : int
        Passes over the training rows at most; where a pass has fewer than 50 steps, so many passes as have 50.
    patience : int
        Training ends when so many scorings in a row have not lowered the best candidate's log loss.
    batch_size : int
        Rows of a step.
    validation_share : float
        Share of the rows set apart (100 000 at most), by class or by whole groups; they choose the candidate and the
        moment to stop, and are not trained on.
    class_weight : dict, "balanced" or None
        As in scikit-learn.
    device : str
        ``"cpu"`` or ``"cuda"``.
    random_state : int
        Seed of validation rows and order.
    progress : callable, optional
        Called with (rows seen, rows of all passes).

    Attributes
    ----------
    coef_, intercept_ : ndarray
        (K, D) and (K,); (1, D) and (1,) for two classes. The average iterate that scored best.
    learning_rate_, weight_decay_ : float
        Of the candidate chosen.
    C_ : float
        The C at which `LogisticHead` has the same objective on the rows trained on.
    curve_ : list of dict
        For every scoring: ``epoch``, and the best candidate's ``learning_rate``, ``weight_decay``, ``accuracy`` and
        ``log_loss`` on the validation rows.
    candidates_ : list of dict
        For every candidate its best ``log_loss`` with the ``accuracy`` and the ``epoch`` there.
    validation_rows_ : ndarray of shape (V,)
        Positions of the rows that were set apart.
    validation_scores_ : ndarray of shape (V, K)
        Their scores.
    n_iter_ : int
        Steps taken.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> head = LinearHead().fit(X, y)
    >>> head.coef_.shape, bool(head.score(X, y) > 0.9)
    ((3, 4), True)
    """

    def __init__(
        self,
        *,
        learning_rates: Sequence[float] = (0.03, 0.1, 0.3),
        weight_decays: Sequence[float] = (1e-4, 1e-3, 3e-3, 1e-2),
        max_epochs: int = 20,
        patience: int = 3,
        batch_size: int = 1024,
        validation_share: float = 0.1,
        class_weight: Any = None,
        device: str = "cpu",
        random_state: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.learning_rates = learning_rates
        self.weight_decays = weight_decays
        self.max_epochs = max_epochs
        self.patience = patience
        self.batch_size = batch_size
        self.validation_share = validation_share
        self.class_weight = class_weight
        self.device = device
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: ArrayLike | StreamedRows, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit.

        Parameters
        ----------
        X : array-like of shape (N, D), or StreamedRows
            Features. A C-ordered `numpy.memmap` of floats is streamed, and so are `StreamedRows`.
        y : array-like of shape (N,)
            Classes.
        groups : array-like of shape (N,), optional
            Rows of one group are set apart together or not at all.

        Raises
        ------
        ValueError
            scikit-learn's own, for shapes, NaN and the like; for a single class; where no learning rate is
            small enough.
        HeadError
            A row read from a file holds NaN or infinity.
        """
        rows, codes = self._streamed(X, y)
        rng = np.random.default_rng(self.random_state)
        validation = self._set_apart(codes, groups, rng)
        train = np.delete(np.arange(len(codes), dtype=np.int64), validation)
        weight = self._row_weight(codes, self.class_weight)
        training = _Training(self, rows.take(train).held(), codes[train], len(self.classes_), rng)
        if weight is not None:
            training.weigh(weight[train])
        # Rows too few to set any apart choose by what they were trained on.
        scored = validation if len(validation) else train
        self.validation_rows_ = scored
        held_out = rows.take(scored).held(_VALIDATION_BUFFER)
        training.run(held_out, codes[scored])
        if "penalty" not in training.best:
            raise ValueError("training diverged at every learning rate: give smaller learning_rates, or scale X")
        self.curve_, self.candidates_, self.n_iter_ = training.curve, training.candidates(), training.steps
        best = training.best
        self.learning_rate_, self.weight_decay_ = best["learning_rate"], best["weight_decay"]
        self.C_ = 1.0 / (best["penalty"] * len(train))
        coef, intercept = training.solution()
        self.validation_scores_ = _scores(held_out, coef, intercept)
        self._take(coef, intercept)
        return self

    def _streamed(self, X: Any, y: ArrayLike) -> tuple[StreamedRows, NDArray[np.int64]]:
        """Check X without reading it where it is a map, with scikit-learn's checks otherwise."""
        if isinstance(X, np.memmap) and X.ndim == 2 and X.dtype.kind == "f" and X.flags.c_contiguous:
            X = StreamedRows(X)
        if not isinstance(X, StreamedRows):
            data, codes = self._validate(X, y)
            return StreamedRows(data), codes
        target = column_or_1d(y, warn=True)
        check_consistent_length(X, target)
        check_classification_targets(target)
        self.n_features_in_ = X.shape[1]
        return X, self._codes(target)

    def _set_apart(
        self, codes: NDArray[np.int64], groups: ArrayLike | None, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Choose the validation rows: no group on both sides, every class among the rows left."""
        if fold_count(codes, 2, groups) < 2:
            return np.zeros(0, dtype=np.int64)
        share = min(self.validation_share, _MOST_VALIDATION_ROWS / len(codes))
        try:
            split = hold_out(codes, share=share, seed=self.random_state, groups=groups)
        except HeadError:
            return np.zeros(0, dtype=np.int64)
        return np.flatnonzero(split == "test")


class _Training:
    """All candidates, trained side by side.

    Parameters are kept in the eigenbasis of the features' covariance, (D + 1, A K), the last row the intercepts of
    centred features.
    """

    def __init__(
        self, head: LinearHead, rows: StreamedRows, codes: NDArray[np.int64], k: int, rng: np.random.Generator
    ) -> None:
        import torch

        self.head, self.rows, self.k, self.rng = head, rows, k, rng
        self.device = torch.device(head.device)
        self.codes = torch.from_numpy(codes)
        self.weight: torch.Tensor | None = None
        self.pairs = [(rate, decay) for rate in head.learning_rates for decay in head.weight_decays]
        self.steps = 0
        self.curve: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"log_loss": math.inf}
        self._candidates: list[dict[str, Any]] = [{"log_loss": math.inf} for _ in self.pairs]

    def weigh(self, weight: NDArray[np.float64]) -> None:
        """Give the rows weights, of mean one."""
        import torch

        self.weight = torch.from_numpy((weight / weight.mean()).astype(np.float32))

    def run(self, held_out: StreamedRows, truth: NDArray[np.int64]) -> None:
        """Train until the passes are used up, or nothing has become better for some time."""
        width, columns = self.rows.shape[1], len(self.pairs) * self.k
        # A step is a dozen operations: threads pay only where each of them is large, and cost much on a busy machine.
        with threads_for(width * columns * (self.head.batch_size + width) // _OPERATIONS_PER_STEP):
            self._run(held_out, truth)

    def _run(self, held_out: StreamedRows, truth: NDArray[np.int64]) -> None:
        import torch

        n_rows, head = len(self.rows), self.head
        least, most = _STEPS_BETWEEN_SCORES
        between = min(max(-(-n_rows // head.batch_size), least), most)
        codes = torch.from_numpy(truth)
        passes = head.max_epochs * max(1, -(-least * head.batch_size // n_rows))
        total = n_rows * passes
        seen = stale = 0
        for _ in range(passes):
            for batch, labels, weight in self._batches():
                self._step(batch, labels, weight)
                seen += len(labels)
                if self.steps % between:
                    continue
                if head.progress is not None:
                    head.progress(min(seen, total), total)
                stale = 0 if self._score(held_out, codes, seen / n_rows) else stale + 1
                if stale >= head.patience:
                    return
        if self.steps % between:
            self._score(held_out, codes, seen / n_rows)

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """Give minibatches of one pass; the first chunk also teaches the covariance."""
        import torch

        size = self.head.batch_size
        for chunk in self.rows.chunks(self.rng):
            if not self.steps:
                self._learn_features(chunk.data, chunk.at)
            data = torch.from_numpy(chunk.data)
            order = self.rng.permutation(len(chunk.at))
            for start in range(0, len(order), size):
                part = order[start : start + size]
                batch = data[torch.from_numpy(chunk.at[part])].to(self.device).float()
                positions = torch.from_numpy(chunk.positions[part])
                weight = None if self.weight is None else self.weight[positions].to(self.device)
                yield batch, self.codes[positions].to(self.device), weight

    def _learn_features(self, data: NDArray[Any], at: NDArray[np.int64]) -> None:
        """Measure mean and covariance on the first chunk, and start every candidate at the class shares."""
        import torch

        width, k, a = data.shape[1], self.k, len(self.pairs)
        count = max(_COVARIANCE_ROWS_PER_FEATURE * width, 4096)
        sample = torch.from_numpy(data[self.rng.permutation(at)[:count]]).to(self.device).float()
        self.mean = sample.mean(0)
        sample -= self.mean
        if width > _WIDEST_COVARIANCE:
            self.basis, spread = None, sample.square().mean(0)
        else:
            spread, basis = torch.linalg.eigh((sample.T @ sample).double() / len(sample))
            self.basis, spread = basis.float(), spread.clamp_min(0.0).float()
        unit = max(float(spread.mean()), 1e-30)
        shares = torch.bincount(self.codes, self.weight, minlength=k).float().to(self.device)
        shares = shares / shares.sum()
        curvature = (shares * (1.0 - shares)).repeat(a)
        rates, decays = (torch.tensor(values, device=self.device) for values in zip(*self.pairs, strict=True))
        self.rate = rates.repeat_interleave(k)
        self.penalty = torch.zeros(width + 1, a * k, device=self.device)
        self.penalty[:-1] = unit * decays.repeat_interleave(k)
        self.unit = unit
        # Directions without variance have no curvature but the penalty's; a floor keeps their steps from exploding.
        spread = torch.cat([spread.clamp_min(1e-6 * unit), torch.ones(1, device=self.device)])
        self.inverse_curvature = 1.0 / (spread[:, None] * curvature + self.penalty)
        self.theta = torch.zeros(width + 1, a * k, device=self.device)
        self.theta[-1] = shares.log().repeat(a)
        self.average = self.theta.clone()
        self.velocity = torch.zeros_like(self.theta)

    def _plain(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights (D, ·) and intercepts for the features as they come."""
        weights = theta[:-1] if self.basis is None else self.basis @ theta[:-1]
        return weights, theta[-1] - self.mean @ weights

    def _step(self, batch: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None) -> None:
        import torch

        a, k, size = len(self.pairs), self.k, len(labels)
        weights, intercepts = self._plain(self.theta)
        residual = torch.addmm(intercepts, batch, weights).view(size, a, k).softmax(2)
        truth = labels[:, None, None].expand(size, a, 1)
        residual.scatter_add_(2, truth, residual.new_full((size, a, 1), -1.0))
        if weight is not None:
            residual *= weight[:, None, None]
        flat = residual.view(size, a * k) / size
        gradient = torch.empty_like(self.theta)
        gradient[-1] = flat.sum(0)
        features = batch.T @ flat - self.mean[:, None] * gradient[-1]
        gradient[:-1] = features if self.basis is None else self.basis.T @ features
        gradient += self.penalty * self.theta
        self.steps += 1
        self.velocity.lerp_(gradient.mul_(self.inverse_curvature), 1.0 - _MOMENTUM)
        self.theta -= self.rate * min(1.0, self.steps / _WARM_UP) * self.velocity
        share = max(1.0 / self.steps, (1 + _AVERAGE_POWER) / (self.steps + _AVERAGE_POWER))
        self.average.lerp_(self.theta, share)

    def _score(self, held_out: StreamedRows, codes: torch.Tensor, epoch: float) -> bool:
        """Score the candidates' averages on rows not trained on; say whether one is clearly better than all before."""
        import torch

        a, k = len(self.pairs), self.k
        weights, intercepts = self._plain(self.average)
        loss = torch.zeros(a, dtype=torch.float64, device=self.device)
        correct = torch.zeros(a, dtype=torch.float64, device=self.device)
        for chunk in held_out.chunks(buffer_bytes=_VALIDATION_BUFFER):
            data = torch.from_numpy(chunk.data)
            for start in range(0, len(chunk.at), self.head.batch_size):
                part = slice(start, start + self.head.batch_size)
                batch = data[torch.from_numpy(chunk.at[part])].to(self.device).float()
                truth = codes[torch.from_numpy(chunk.positions[part])].to(self.device)[:, None]
                log_p = torch.addmm(intercepts, batch, weights).view(len(batch), a, k).log_softmax(2)
                at_truth = log_p.gather(2, truth[:, :, None].expand(-1, a, 1))[:, :, 0]
                loss -= at_truth.sum(0, dtype=torch.float64)
                correct += (log_p.argmax(2) == truth).sum(0)
        losses, accuracies = ((sums / len(codes)).tolist() for sums in (loss, correct))
        for i, (rate, decay) in enumerate(self.pairs):
            if losses[i] < self._candidates[i]["log_loss"]:
                self._candidates[i] = {
                    "learning_rate": rate,
                    "weight_decay": decay,
                    "penalty": decay * self.unit,
                    "log_loss": losses[i],
                    "accuracy": accuracies[i],
                    "epoch": epoch,
                }
        leader = int(np.nanargmin(losses)) if np.isfinite(losses).any() else 0
        rate, decay = self.pairs[leader]
        scored = {"learning_rate": rate, "weight_decay": decay}
        self.curve.append({"epoch": epoch, **scored, "log_loss": losses[leader], "accuracy": accuracies[leader]})
        before = self.best["log_loss"]
        if losses[leader] < before:
            self.best = self._candidates[leader]
            columns = slice(leader * k, (leader + 1) * k)
            self._kept = weights[:, columns].clone(), intercepts[columns].clone()
        return bool(losses[leader] < before * (1.0 - _LEAST_GAIN))

    def candidates(self) -> list[dict[str, Any]]:
        """Return the best score of every candidate that ever had one."""
        return [entry for entry in self._candidates if "epoch" in entry]

    def solution(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return weights (K, D) and intercepts (K,) of the best score."""
        weights, intercepts = self._kept
        return weights.T.double().cpu().numpy(), intercepts.double().cpu().numpy()


def _scores(rows: StreamedRows, coef: NDArray[np.float64], intercept: NDArray[np.float64]) -> NDArray[np.float64]:
    from pipeline.heads.model import linear_scores

    out = np.empty((len(rows), len(intercept)))
    for chunk in rows.chunks(buffer_bytes=_VALIDATION_BUFFER):
        for start in range(0, len(chunk.at), 4096):
            part = slice(start, start + 4096)
            out[chunk.positions[part]] = linear_scores(chunk.data[chunk.at[part]], coef, intercept)
    return out
