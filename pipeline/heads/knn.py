"""k nearest neighbours whose settings are chosen on folds of the training rows.

Axes: N rows, D features, K classes, n rows scored, k neighbours, L labels among the neighbours of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.core.vectors import unit_rows
from pipeline.errors import HeadError
from pipeline.evaluation.calibration import fit_temperature
from pipeline.evaluation.choice import HeldOut, choose
from pipeline.evaluation.splits import ALWAYS_TRAINS, fold_count, fold_numbers
from pipeline.heads.base import ClassHead
from pipeline.heads.fit import FitOptions, refuse_class_weights, with_params
from pipeline.heads.model import HeadModel
from pipeline.heads.neighbours import (
    METRICS,
    WEIGHTS,
    count_votes,
    log_shares,
    search,
    space_of,
    vote_weights,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    Data = NDArray[np.float32]
    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

SCALINGS = ("none", "center", "standard")
"""Features as they are, minus their means, or also divided by their standard deviations."""

COUNTS = (1, 2, 3, 5, 7, 10, 15, 22, 31, 45, 64)
"""Values of k that ``"auto"`` tries."""

SMOOTHING = 0.3
"""Votes spread evenly over all classes, so that no class has probability 0. Of 0.3, 1 and 3 it gave the smallest log
loss on 32 small data sets."""

_MOST_SCORED = 4000
_LEAST_SCORED = 1000
_DISTANCES = 1 << 27
"""Rows scored times rows searched by one choice, about: larger sets score fewer rows."""


@dataclass(frozen=True)
class Candidate:
    """One setting of k-NN."""

    n_neighbors: int
    weights: str
    metric: str
    scaling: str

    def as_dict(self) -> dict[str, Any]:
        """Return the settings by their names as parameters of `KnnHead`."""
        return {
            "n_neighbors": self.n_neighbors,
            "metric": self.metric,
            "weights": self.weights,
            "scaling": self.scaling,
        }


@dataclass(frozen=True)
class _Found:
    """Neighbours of the rows scored, nearest first, in one space.

    The classes among a row's neighbours have local labels 0 … L−1; label L stands for all other classes together.

    Attributes
    ----------
    distance, classes, label : ndarray of shape (n, k)
        Distance, class and local label of every neighbour.
    truth : ndarray of shape (n,)
        Local label of the row's own class.
    copies : ndarray of shape (n, L + 1)
        How many classes each label stands for.
    """

    distance: Floats
    classes: Ints
    label: Ints
    truth: Ints
    copies: Floats

    @staticmethod
    def of(distance: Floats, classes: Ints, y: Ints, n_classes: int) -> _Found:
        """Label the classes; ``y`` (n,) are those of the rows."""
        order = np.argsort(classes, axis=1, kind="stable")
        ranked = np.take_along_axis(classes, order, axis=1)
        run = np.zeros_like(ranked)
        run[:, 1:] = np.cumsum(ranked[:, 1:] != ranked[:, :-1], axis=1)
        label = np.empty_like(run)
        np.put_along_axis(label, order, run, axis=1)
        n_labels = int(run.max()) + 1
        class_of = np.full((len(y), n_labels + 1), -1)
        np.put_along_axis(class_of, label, classes, axis=1)
        copies = (class_of >= 0).astype(np.float64)
        copies[:, -1] = n_classes - copies.sum(axis=1)
        match = class_of == y[:, None]
        truth = np.where(match.any(axis=1), match.argmax(axis=1), n_labels)
        return _Found(distance, classes, label, truth, copies)

    def votes(self, candidate: Candidate, label: Ints, n_labels: int) -> Floats:
        """Return votes (n, n_labels) for labels (n, k) of the neighbours."""
        count = min(candidate.n_neighbors, self.distance.shape[1])
        vote = vote_weights(self.distance[:, :count], candidate.weights)
        return count_votes(vote, label[:, :count], n_labels)

    def held_out(self, candidate: Candidate, n_classes: int) -> HeldOut:
        """Measure one candidate, after its own temperature."""
        votes = self.votes(candidate, self.label, self.copies.shape[1])
        scores = log_shares(votes, n_classes, SMOOTHING)
        scores /= fit_temperature(scores, self.truth, copies=self.copies)
        largest = scores.max(axis=1, keepdims=True)
        total = largest[:, 0] + np.log((np.exp(scores - largest) * self.copies).sum(axis=1))
        at_truth = scores[np.arange(len(scores)), self.truth]
        tied = ((scores == largest) * self.copies).sum(axis=1)
        mean = (scores * self.copies).sum(axis=1) / n_classes
        return HeldOut(total - at_truth, total - mean, (at_truth == largest[:, 0]) / tied)


class KnnHead(ClassHead):
    """k nearest neighbours; k, the metric, the scaling and the weights chosen by cross-validation.

    One search in each fold gives the nearest rows for all values of k and all weights, so choosing costs little more
    than a prediction. Rows are kept in a random order, so that equal distances favour no class.

    Parameters
    ----------
    n_neighbors : "auto", int or sequence of int
        k, or values of k to try; at most as many as there are rows.
    metric : {"auto", "cosine", "euclidean"}
        Distance.
    weights : {"auto", "uniform", "distance", "exponential"}
        One vote each, votes by the inverse of the distance, or votes that fall exponentially with it.
    scaling : {"auto", "none", "center", "standard"}
        Features as they are, minus their means, or also divided by their standard deviations.
    cv : int or None
        Folds, as in `pipeline.heads.LogisticSweep`. None scores no rows and needs all settings to be fixed.
    scoring : {"accuracy", "log_loss"}
        What chooses: accuracy and then log loss, or log loss alone, as `pipeline.evaluation.choice.choose` does.
    random_state : int
        Seed of the folds, of the rows that are scored and of the order of the rows.

    Attributes
    ----------
    chosen_ : dict
        The settings chosen.
    sweep_ : list of dict
        Every candidate: its settings, ``accuracy`` and ``log_loss`` (at a temperature of its own) of the rows scored.
    fold_ : ndarray of shape (N,)
        The fold that held each row out; −2 for none.
    oof_scores_ : ndarray of shape (N, K)
        Log-probabilities of every row scored, from neighbours outside its fold, at the chosen settings; NaN for other
        rows. At most 4000 rows are scored, fewer of more than 30 000.
    neighbours_ : ndarray of shape (N, D), float32
        Training rows in the space chosen, at unit length for the cosine.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> bool(KnnHead().fit(X, y).score(X, y) > 0.9)
    True
    """

    takes_groups = True

    def __init__(
        self,
        *,
        n_neighbors: Literal["auto"] | int | Sequence[int] = "auto",
        metric: Literal["auto", "cosine", "euclidean"] = "auto",
        weights: Literal["auto", "uniform", "distance", "exponential"] = "auto",
        scaling: Literal["auto", "none", "center", "standard"] = "auto",
        cv: int | None = 5,
        scoring: Literal["accuracy", "log_loss"] = "accuracy",
        random_state: int = 0,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.weights = weights
        self.scaling = scaling
        self.cv = cv
        self.scoring = scoring
        self.random_state = random_state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore; give a head of an earlier version the settings that it had."""
        before = {"metric": "cosine", "weights": "uniform", "scaling": "none", "cv": 5, "scoring": "accuracy"}
        super().__setstate__(before | {"random_state": 0} | state)

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Choose the settings on folds of the rows given, then keep all rows.

        Parameters
        ----------
        X : array-like of shape (N, D)
            Features.
        y : array-like of shape (N,)
            Classes.
        groups : array-like of shape (N,), optional
            Rows of one group share a fold.

        Raises
        ------
        ValueError
            scikit-learn's own; for a single class; for a setting that does not exist; where there is something to
            choose and every class has a single row or group.
        """
        self._check_settings()
        data, codes = self._validate(X, y)
        order = np.random.default_rng(self.random_state).permutation(len(data))
        candidates = self._candidates(len(data))
        self.n_folds_ = 0 if self.cv is None else fold_count(codes, self.cv, groups)
        if self.n_folds_ < 2 and len(candidates) > 1:
            raise ValueError(
                "choosing the settings of k-NN needs 2 folds and a class of at least 2 rows (or groups): "
                "fix n_neighbors, metric, weights and scaling, or add rows"
            )
        self.fold_ = np.full(len(data), ALWAYS_TRAINS, dtype=np.int64)
        self.oof_scores_ = np.full((len(data), len(self.classes_)), np.nan)
        self.sweep_: list[dict[str, Any]] = []
        chosen, scored = candidates[0], np.zeros(0, dtype=np.int64)
        if self.n_folds_ >= 2:
            self.fold_ = fold_numbers(codes, self.n_folds_, seed=self.random_state, groups=groups)
            scored = self._rows_to_score(order)
            chosen = self._choose(data, codes, candidates, order, scored, groups)
        self.chosen_ = chosen.as_dict() | {"folds": self.n_folds_, "scored_rows": len(scored)}
        self._keep(data, codes, chosen, order)
        return self

    def at_chosen(self) -> KnnHead:
        """Return a head with the chosen settings fixed, to be fitted to other rows; it scores none of them."""
        check_is_fitted(self)
        settings = {name: self.chosen_[name] for name in ("n_neighbors", "metric", "weights", "scaling")}
        return KnnHead(**settings, cv=None, random_state=self.random_state)

    def model(self) -> HeadModel:
        """Return the arrays of the fitted head."""
        check_is_fitted(self)
        arrays: dict[str, NDArray[Any]] = {"neighbours": self.neighbours_, "classes": self.codes_}
        if not hasattr(self, "chosen_"):  # restored from a file of an earlier version
            count = min(int(self.n_neighbors), len(self.codes_))  # type: ignore[arg-type]
            arrays["n_neighbors"] = np.asarray([count], dtype=np.int64)
            return HeadModel("knn", arrays, "shares", len(self.classes_))
        whole = {
            "n_neighbors": self.chosen_["n_neighbors"],
            "metric": METRICS.index(self.chosen_["metric"]),
            "weighting": WEIGHTS.index(self.chosen_["weights"]),
        }
        arrays |= {name: np.asarray([value], dtype=np.int64) for name, value in whole.items()}
        arrays |= {"center": self.space_.center, "scale": self.space_.scale, "smoothing": np.asarray([SMOOTHING])}
        return HeadModel("knn", arrays, "softmax", len(self.classes_))

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return the classes' smoothed shares of the neighbours' votes (N, K)."""
        check_is_fitted(self)
        data = np.asarray(validate_data(self, X, dtype=np.float32, reset=False))
        return self.model().predict_proba(data)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class with the most votes."""
        best = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[best])

    # --- choosing --------------------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        for name, known in (("metric", METRICS), ("weights", WEIGHTS), ("scaling", SCALINGS)):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in ("auto", *known):
                raise ValueError(f"{name}: expected auto, {', '.join(known)}, got {value!r}")
        if self.scoring not in ("accuracy", "log_loss"):
            raise ValueError(f"scoring: expected accuracy or log_loss, got {self.scoring!r}")
        if self.cv is not None and not (_is_whole(self.cv) and self.cv >= 2):
            raise ValueError(f"cv: expected a whole number of folds from 2, or None, got {self.cv!r}")
        counts = self.n_neighbors
        if isinstance(counts, str) and counts == "auto":
            return
        values: list[Any] = list(counts) if isinstance(counts, (list, tuple, range, np.ndarray)) else [counts]
        if not values or not all(_is_whole(value) and value >= 1 for value in values):
            raise ValueError(f"n_neighbors: expected auto, or whole numbers from 1, got {counts!r}")

    def _candidates(self, n_rows: int) -> list[Candidate]:
        """Return the candidates, from the strongest smoothing to the weakest."""
        given: Any = self.n_neighbors
        values = COUNTS if isinstance(given, str) else [given] if _is_whole(given) else given
        counts = sorted({min(int(value), n_rows) for value in values}, reverse=True)
        weights = WEIGHTS if self.weights == "auto" else (self.weights,)
        spaces = list(dict.fromkeys(self._spaces()))
        return [Candidate(k, weight, *space) for k in counts for weight in weights for space in spaces]

    def _spaces(self) -> Iterator[tuple[str, str]]:
        for metric in METRICS if self.metric == "auto" else (self.metric,):
            for scaling in SCALINGS if self.scaling == "auto" else (self.scaling,):
                # Euclidean distances do not depend on where the features' centre is.
                yield metric, "none" if metric == "euclidean" and scaling == "center" else scaling

    def _rows_to_score(self, order: Ints) -> Ints:
        rows = order[self.fold_[order] != ALWAYS_TRAINS]
        most = min(max(_DISTANCES // len(order), _LEAST_SCORED), _MOST_SCORED)
        return np.sort(rows[:most])

    def _choose(
        self,
        data: Data,
        codes: Ints,
        candidates: list[Candidate],
        order: Ints,
        scored: Ints,
        groups: ArrayLike | None,
    ) -> Candidate:
        found = self._search_folds(data, codes, candidates, order, scored)
        k = len(self.classes_)
        measured = [found[c.metric, c.scaling].held_out(c, k) for c in candidates]
        self.sweep_ = [
            c.as_dict() | {"accuracy": m.accuracy, "log_loss": m.log_loss}
            for c, m in zip(candidates, measured, strict=True)
        ]
        group = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].ravel()[scored]
        chosen = candidates[choose(measured, by=self.scoring, groups=group)]
        at_chosen = found[chosen.metric, chosen.scaling]
        self.oof_scores_[scored] = log_shares(at_chosen.votes(chosen, at_chosen.classes, k), k, SMOOTHING)
        return chosen

    def _search_folds(
        self, data: Data, codes: Ints, candidates: list[Candidate], order: Ints, scored: Ints
    ) -> dict[tuple[str, str], _Found]:
        """Return the neighbours of the rows scored, outside their folds, by metric and scaling."""
        kept_of = [order[self.fold_[order] != fold] for fold in range(self.n_folds_)]
        count = min(candidates[0].n_neighbors, *(len(kept) for kept in kept_of))
        spaces = list(dict.fromkeys((c.metric, c.scaling) for c in candidates))
        distance = {space: np.empty((len(scored), count)) for space in spaces}
        near = {space: np.empty((len(scored), count), dtype=np.int64) for space in spaces}
        for fold, kept in enumerate(kept_of):
            asked = np.flatnonzero(self.fold_[scored] == fold)
            train = data[kept]
            for scaling, names in _by_geometry(spaces).items():
                space = space_of(train, scaling)
                found = search(space.place(data[scored[asked]]), space.place(train), count, tuple(names))
                for rows, metric, distances, positions in found:
                    distance[names[metric]][asked[rows]] = distances
                    near[names[metric]][asked[rows]] = codes[kept[positions]]
        k, y = len(self.classes_), codes[scored]
        return {space: _Found.of(distance[space], near[space], y, k) for space in spaces}

    def _keep(self, data: Data, codes: Ints, chosen: Candidate, order: Ints) -> None:
        self.space_ = space_of(data, _geometry(chosen.metric, chosen.scaling))
        kept = self.space_.place(data[order])
        self.neighbours_ = unit_rows(kept) if chosen.metric == "cosine" else kept
        self.codes_ = codes[order].astype(np.int64)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, (bool, np.bool_))


def _geometry(metric: str, scaling: str) -> str:
    """Return the scaling to compute with: differences of centred features have the smaller rounding errors."""
    return "center" if metric == "euclidean" and scaling == "none" else scaling


def _by_geometry(spaces: list[tuple[str, str]]) -> dict[str, dict[str, tuple[str, str]]]:
    """Group pairs of metric and scaling by the scaling to compute with: one product serves both metrics."""
    out: dict[str, dict[str, tuple[str, str]]] = {}
    for metric, scaling in spaces:
        out.setdefault(_geometry(metric, scaling), {})[metric] = (metric, scaling)
    return out


def make_knn(options: FitOptions) -> Any:
    """Return the unfitted head of these options."""
    refuse_class_weights(options, "knn")
    if options.scaling != "none":
        raise HeadError("the knn head chooses its own scaling, so it takes no --scaling: use --set scaling=standard")
    head = KnnHead(cv=options.folds, scoring=options.scoring, random_state=options.seed)
    return with_params(head, options.params, "the knn head")


def knn_model(estimator: KnnHead) -> HeadModel:
    """Take the arrays of a `KnnHead`."""
    return estimator.model()
