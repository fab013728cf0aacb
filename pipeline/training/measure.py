"""Before and after a training: the training and validation rows, the start, and the scores of the result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.backbones import FINE_TUNED
from pipeline.backbones.layers import Weights
from pipeline.backbones.network import hash_weights
from pipeline.core.spec import fingerprint
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.from_spec import decode_of_spec, make_spec
from pipeline.evaluation.calibration import fit_temperature
from pipeline.evaluation.classification import confusion_matrix
from pipeline.evaluation.splits import hold_out
from pipeline.fitting.measure import measure_splits
from pipeline.heads.model import HeadModel
from pipeline.training.images import check_unchanged
from pipeline.training.network import check_logits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.backbones import Backbone
    from pipeline.cache import Cache
    from pipeline.core.callbacks import Callbacks, Say
    from pipeline.embedding.settings import RunSettings
    from pipeline.fitting.rows import Rows
    from pipeline.heads import LoadedHead
    from pipeline.sources import Source
    from pipeline.training.images import CachedImages
    from pipeline.training.network import FineTuningNetwork

CHECKED_IMAGES = 16
VALIDATION_SHARE = 0.1
"""Share of the training rows for early stopping where the cache has no val split."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The rows of a training and of its measurement.

    Attributes
    ----------
    cache : Cache
    source : Source
        Its images.
    rows : Rows
    val : (n,) int64
        Positions among ``rows`` for early stopping and the temperature.
    head : LoadedHead
        The head from which training started.
    """

    cache: Cache
    source: Source
    rows: Rows
    val: NDArray[np.int64]
    head: LoadedHead

    @property
    def splits(self) -> list[str]:
        """The splits that have rows."""
        return [name for name in ("test", "val") if len(self.rows.of(name))]


def training_rows(rows: Rows, seed: int, note: Say) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return positions to train and to validate on: the val split, or part of the training rows."""
    train, val = rows.of("train"), rows.of("val")
    if len(val) and len(rows.of("test")):
        return train, val
    groups = None if rows.groups is None else rows.groups[train]
    split = hold_out(rows.y[train], share=VALIDATION_SHARE, seed=seed, groups=groups)
    note(
        f"early stopping and the mix look at {int((split == 'test').sum())} of the {len(train)} training rows, which "
        "do not train: there is no val split besides the rows that measure"
    )
    return train[split != "test"], train[split == "test"]


def check_start(
    network: FineTuningNetwork, images: CachedImages, cache: Cache, train: NDArray[np.int64], head: LoadedHead
) -> float:
    """Return the deviation of the network's logits from the head's on cached rows; see `check_logits`."""
    sample = train[np.unique(np.linspace(0, len(train) - 1, CHECKED_IMAGES).astype(np.int64))]
    prepared = np.concatenate([np.array(batch) for batch in images.batches(sample)])
    exact = cache.spec["precision"] == "float32" and cache.spec["dtype"] == "float32"
    embeddings = cache.layers[head.layer][sample]
    return check_logits(network, prepared, embeddings, head, exact=exact)


def as_backbone(network: FineTuningNetwork, state: Mapping[str, Tensor], backbone: Backbone, origin: str) -> Backbone:
    """Return the network, in a state of its training, as a backbone with its own weights."""
    network.load_state_dict(dict(state))
    network.to("cpu").eval().requires_grad_(False)
    sha256 = hash_weights(network.backbone.body, network.backbone.description)
    return replace(backbone, weights=Weights(FINE_TUNED, origin, sha256, backbone.weights.source))


def measure_tuned(
    tuned: Backbone,
    network: FineTuningNetwork,
    held_out: HeldOut,
    run: RunSettings,
    callbacks: Callbacks,
    *,
    seed: int,
    replicates: int,
) -> tuple[LoadedHead, dict[str, Any]] | None:
    """Embed the held-out rows with the new backbone, as extract would, and measure its head; None when stopped."""
    rows, cache, head = held_out.rows, held_out.cache, held_out.head
    positions = np.concatenate([rows.of(name) for name in held_out.splits] + [held_out.val])
    wanted = np.unique(rows.index[positions])
    embedder = Embedder(tuned, decode_of_spec(cache.spec), (head.layer,), cache.spec["dtype"], run)
    engine = embedder.open_for(held_out.source, rows=wanted, stop=callbacks.stop, say=callbacks.say)
    try:
        X = _embed(embedder, held_out, wanted, callbacks)
    finally:
        embedder.close()
    if X is None:
        return None
    model = _head_of(network, len(head.class_names))

    def scores(at: NDArray[np.int64]) -> NDArray[np.float64]:
        return model.scores(X[np.searchsorted(wanted, rows.index[at])])

    model = replace(model, temperature=fit_temperature(scores(held_out.val), rows.y[held_out.val]))
    spec = make_spec(tuned, embedder.decode, dtype=embedder.dtype, precision=engine.precision)
    # How groups are pooled was chosen for the head before tuning.
    tuned_head = replace(head, model=model, spec=spec, fingerprint=fingerprint(spec), head=FINE_TUNED, pooling=None)
    results = measure_splits(
        rows,
        {name: scores(rows.of(name)) for name in held_out.splits},
        model,
        seed=seed,
        replicates=replicates,
    )
    results["calibration"] = {"rows": len(held_out.val)}
    predicted = results["predictions"][rows.held_out].argmax(1)
    results["confusion"] = confusion_matrix(rows.y[rows.of(rows.held_out)], predicted, len(rows.class_names))
    return tuned_head, results


def _embed(
    embedder: Embedder, held_out: HeldOut, wanted: NDArray[np.int64], callbacks: Callbacks
) -> NDArray[Any] | None:
    """Return the embeddings of rows (n, D), of the cache's type; None when stopped."""
    parts = []
    for batch, embeddings, _ in embedder.embed(held_out.source, wanted, stop=callbacks.stop):
        check_unchanged(held_out.cache, batch)
        parts.append(embeddings.astype(embedder.dtype))
    found = np.concatenate(parts) if parts else np.empty((0, 0))
    return found if len(found) == len(wanted) else None


def _head_of(network: FineTuningNetwork, classes: int) -> HeadModel:
    arrays = {
        "coef": network.head.weight.detach().double().numpy().copy(),
        "intercept": network.head.bias.detach().double().numpy().copy(),
    }
    return HeadModel("linear", arrays, "softmax", classes)
