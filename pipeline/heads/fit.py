"""The options and the result of fitting a head of any kind.

Axes: N rows, D features, K classes, labels or targets.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import HeadError, first_line, near_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.heads.model import HeadModel
    from pipeline.heads.texts import ClassTexts

    Fitter = Callable[[Any, NDArray[Any], NDArray[Any] | None, "FitOptions"], "FittedHead"]
    """From data, targets, groups (N,) or None, and options to a fitted head.

    Data are float32 (N, D); for the heads in ``pipeline.heads.registry.STREAMED`` they are `StreamedRows`.
    """


MANY_CLASSES = "The number of unique classes is greater than 50% of the number of samples"
"""How scikit-learn's warning begins that classes of one or two rows may be numbers; here the task is settled."""


@dataclass(frozen=True)
class FitOptions:
    """Options of a fit; a head uses those that apply to it.

    ``texts`` are the classes as a text tower reads them, in the order of their numbers; ``start`` is what a penalty
    pulls the weights to: zero, or those of the texts.
    """

    Cs: Literal["auto", "full"] | tuple[float, ...] = "auto"
    folds: int = 5
    scoring: Literal["accuracy", "log_loss"] = "accuracy"
    scaling: Literal["none", "standard"] = "none"
    class_weight: Literal["balanced"] | None = None
    seed: int = 0
    device: str = "cpu"
    calibrate: bool = True
    params: Mapping[str, Any] = field(default_factory=dict)
    progress: Callable[[int, int], None] | None = None
    texts: ClassTexts | None = None
    start: Literal["zero", "zero-shot"] = "zero"


@dataclass(frozen=True)
class FittedHead:
    """A head after fitting.

    Attributes
    ----------
    estimator : object
        scikit-learn estimator, fitted on all training rows.
    model : HeadModel
        Scores and predictions; of kind ``"estimator"`` where only the estimator can give them.
    oof_scores : ndarray of shape (N, K) or None
        Scores of every training row from a fit that did not see it; NaN for rows that no fold held out.
    log_probabilities : bool
        Whether scores are log-probabilities up to a constant of each row, and not margins without a scale.
    chosen : dict
        Hyper-parameters that were chosen.
    sweep : list of dict
        One entry for every value tried, empty where nothing was.
    warnings : list of str
        Messages for the user, such as values of C that did not converge.
    refit : callable or None
        Fits other rows at the chosen hyper-parameters; None where these rows do not allow it.
    """

    estimator: Any
    model: HeadModel
    oof_scores: NDArray[np.float64] | None = None
    log_probabilities: bool = True
    chosen: dict[str, Any] = field(default_factory=dict)
    sweep: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refit: Callable[[NDArray[np.float32], NDArray[Any]], HeadModel | None] | None = None


def with_params(estimator: Any, params: Mapping[str, Any], name: str) -> Any:
    """Set the user's own settings of an estimator.

    Parameters
    ----------
    estimator : object
        scikit-learn estimator.
    params : mapping
        Values by name; ``a__b`` reaches into nested estimators.
    name : str
        What the user calls the head.

    Raises
    ------
    HeadError
        For a setting it does not have.
    """
    known = estimator.get_params()
    for key in params:
        if key not in known:
            raise HeadError(f"{name} has no setting {key!r}: {near_names(key, sorted(known))}")
    return estimator.set_params(**params)


def refuse_class_weights(options: FitOptions, name: str) -> None:
    """Refuse class weights for a head that has none.

    Raises
    ------
    HeadError
        Where the options ask for balanced classes.
    """
    if options.class_weight is not None:
        raise HeadError(
            f"the {name} head has no class weights, so it takes no --balanced: "
            "take --head logistic, ridge, lda or svm on classes, or leave it out"
        )


@contextlib.contextmanager
def explained(estimator: Any) -> Iterator[None]:
    """Turn scikit-learn's errors about settings and data into one line."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise HeadError(
            f"{type(estimator).__name__} fails ({first_line(error)}): change it with --set, or the data"
        ) from error


def scaled(estimator: Any, options: FitOptions) -> Any:
    """Standardise the features first where that is asked for."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), estimator) if options.scaling == "standard" else estimator
