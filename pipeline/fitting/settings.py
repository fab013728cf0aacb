"""All settings of a fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipeline.core.spec import PENULTIMATE

if TYPE_CHECKING:
    from pipeline.evaluation.tasks import TaskName


@dataclass(frozen=True)
class FitSettings:
    """All settings of a fit.

    Attributes
    ----------
    head : str or None
        A name in ``pipeline.heads.registry.HEADS_OF``; None for the default of the task.
    estimator : str or None
        A scikit-learn estimator as ``"module:Class"``, instead of a head.
    layer : str
        ``"penultimate"`` or another layer of the cache.
    layers : tuple of str
        Two or more layers, or ``("all",)``, instead of ``layer``: the folds choose among them and their
        concatenations.
    views : bool
        Whether to fit on all views of every image that the cache holds, and not on the first alone.
    labels : str or None
        A table of labels (and splits, groups and more) by key, instead of the cache's own.
    features : tuple of str
        Columns of the cache that join the embeddings, each ``NAME``, ``NAME:number`` or ``NAME:category``.
    target : str or None
        A column of the cache to learn; None for its labels.
    task : "auto", "classification", "regression" or "multilabel"
        What kind of target it is.
    Cs : "auto", "full" or tuple of float
        Values of C of the logistic head.
    folds : int
        Folds of the cross-validation on the training rows.
    scoring : {"accuracy", "log_loss"}
        What chooses C.
    scaling : {"none", "standard"}
        Whether weights are penalised in units of the features' standard deviations.
    class_weight : "balanced" or None
        Whether rare classes weigh more.
    groups : str or None
        The column whose rows stay on one side of every split; None for ``"group"``, where there is one, or ``per``.
    per : str or None
        A column whose rows get one answer together.
    pooling : {"auto", "mean", "max", "embeddings"}
        How; "auto" lets the folds choose. See `pipeline.evaluation.pooling.Pooling`.
    group_duplicates : float or None
        Cosine from which two rows are the same picture, which must not lie on both sides; None to leave them alone.
    test_share : float
        Share held out where the cache has no split column.
    seed : int
        Seed of the hold-out, the folds, the draws and the bootstrap.
    device : str
        ``"cpu"``, ``"cuda"`` or ``"auto"``.
    replicates : int
        Bootstrap resamples.
    calibrate : bool
        Whether probabilities are divided by the temperature found on the out-of-fold scores.
    learning_curve : bool
        Whether to fit on growing shares of the training rows, at the chosen settings.
    shots : tuple of int
        Numbers of training rows a class for the few-shot curve.
    draws : int
        Random draws of these rows.
    report : bool
        Whether to write ``report.html``.
    params : dict
        Further settings of the head or estimator.
    prompts : str or None
        A table of texts of the classes; see `pipeline.fitting.prompts.read_prompts`.
    start : {"zero", "zero-shot"}
        What the penalty of the logistic head pulls the weights to.
    weights : str or None
        Where the weights of the network are that reads the prompts, when they came from a file.
    trust_remote_code : bool
        Run Python files that come with that network.
    """

    head: str | None = None
    estimator: str | None = None
    layer: str = PENULTIMATE
    layers: tuple[str, ...] = ()
    views: bool = True
    labels: str | None = None
    features: tuple[str, ...] = ()
    target: str | None = None
    task: Literal["auto"] | TaskName = "auto"
    Cs: Literal["auto", "full"] | tuple[float, ...] = "auto"
    folds: int = 5
    scoring: Literal["accuracy", "log_loss"] = "accuracy"
    scaling: Literal["none", "standard"] = "none"
    class_weight: Literal["balanced"] | None = None
    groups: str | None = None
    per: str | None = None
    pooling: Literal["auto", "mean", "max", "embeddings"] = "auto"
    group_duplicates: float | None = None
    test_share: float = 0.2
    seed: int = 0
    device: str = "auto"
    replicates: int = 1000
    calibrate: bool = True
    learning_curve: bool = True
    shots: tuple[int, ...] = ()
    draws: int = 5
    report: bool = True
    params: dict[str, Any] = field(default_factory=dict)
    prompts: str | None = None
    start: Literal["zero", "zero-shot"] = "zero"
    weights: str | None = None
    trust_remote_code: bool = False
