"""How a head is saved and loaded: one safetensors file, arrays and JSON, nothing that could run code.

The loader does not trust the file: `pipeline.heads.strict_arrays` reads it, and names, types, shapes and finite values
are checked against the kind of head.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.spec import stated
from pipeline.errors import HeadError
from pipeline.evaluation.pooling import POOLINGS, Pooling
from pipeline.evaluation.tasks import TASKS
from pipeline.heads.blocks import joined_layers
from pipeline.heads.columns import ColumnEncoder
from pipeline.heads.model import ARRAYS, HeadModel, arrays_of, expected_shapes
from pipeline.heads.neighbours import METRICS, WEIGHTS
from pipeline.heads.sklearn import METHODS, EstimatorModel
from pipeline.heads.strict_arrays import read_arrays

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

HEAD_FILE = "head.safetensors"
GROUP_HEAD_FILE = "head-per-group.safetensors"
"""The head on mean embeddings of groups, beside the other, where groups are answered for in this way."""
ESTIMATOR_FILE = "head.joblib"
RUN_FILE = "run.json"
FORMAT = "embedding-pipeline head"
FORMAT_VERSION = 1
"""Of a head on one layer, which every version of this program reads."""
SEVERAL_LAYERS_VERSION = 2
"""Of a head on several layers: earlier versions of this program, which know one layer, refuse it."""
COLUMNS_VERSION = 3
"""Of a head with columns beside the embeddings: earlier versions, which know embeddings alone, refuse it."""
SEVERAL_NETWORKS_VERSION = 4
"""Of a head on the embeddings of several networks, with columns or without: earlier versions refuse it."""
VERSIONS = (FORMAT_VERSION, SEVERAL_LAYERS_VERSION, COLUMNS_VERSION, SEVERAL_NETWORKS_VERSION)
"""What this program reads."""
SEPARATOR = " + "
"""What stands between the layers of a head where they are shown as one text."""


@dataclass(frozen=True)
class FurtherEmbeddings:
    """The embeddings of another network that a head takes beside those of the first.

    Attributes
    ----------
    layers : tuple of str
        The layers, side by side.
    spec : dict
        The spec of the cache that held them.
    fingerprint : str
        That cache's fingerprint.
    """

    layers: tuple[str, ...]
    spec: dict[str, Any]
    fingerprint: str


@dataclass(frozen=True)
class LoadedHead:
    """A fitted head with all that is needed to predict on new images.

    Attributes
    ----------
    model : HeadModel
        The arrays.
    class_names : tuple of str
        Names of the K classes (or labels, or targets), in the order of the columns of the predictions.
    layer : str
        The layer of the cache it was fitted on; of several, their names joined by ``" + "``.
    spec : dict
        The cache's spec: backbone, weights, preprocessing and decode policy.
    fingerprint : str
        The cache's fingerprint.
    head : str
        The name of the head, such as ``"logistic"``.
    task : str
        ``"classification"``, ``"multilabel"`` or ``"regression"``.
    layers : tuple of str
        The layers whose embeddings, side by side, are its features; ``(layer,)`` where there is one.
    pooling : Pooling or None
        How it answers for groups of rows; None where that was not chosen.
    columns : ColumnEncoder or None
        Columns of values whose encoded form follows the embeddings in its features; None where it takes none.
    more : tuple of FurtherEmbeddings
        Other networks whose embeddings of the same images follow those of ``layers``, in this order; empty of a head
        on one network.
    """

    model: HeadModel
    class_names: tuple[str, ...]
    layer: str
    spec: dict[str, Any]
    fingerprint: str
    head: str
    task: str = "classification"
    layers: tuple[str, ...] = ()
    pooling: Pooling | None = None
    columns: ColumnEncoder | None = None
    more: tuple[FurtherEmbeddings, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers:
            object.__setattr__(self, "layers", (self.layer,))

    @property
    def width(self) -> int:
        """Number D of features that the head expects: the width of its embeddings, and of its encoded columns."""
        return self.model.width

    @property
    def networks(self) -> tuple[FurtherEmbeddings, ...]:
        """All networks whose embeddings the head takes, the first included."""
        return (FurtherEmbeddings(self.layers, self.spec, self.fingerprint), *self.more)

    def features(
        self,
        layers: Mapping[str, NDArray[Any]],
        columns: Mapping[str, NDArray[Any]] | None = None,
        more: Sequence[Mapping[str, NDArray[Any]]] = (),
    ) -> NDArray[Any]:
        """Return the features (n, D) that the head takes.

        Parameters
        ----------
        layers : mapping of str to ndarray
            Embeddings by layer, such as ``cache.layers``.
        columns : mapping of str to ndarray, optional
            Columns of values by name, such as ``cache.columns``, of a head that takes some.
        more : sequence of mapping, optional
            Embeddings of the same images by the other networks of the head, in the order of its ``more``.

        Raises
        ------
        HeadError
            A layer, a column or a network of the head is not among them.
        """
        if len(more) != len(self.more):
            raise HeadError(
                f"expected the embeddings of {len(self.more)} networks besides the first, found {len(more)}: give the "
                "layers of each as more=[…], in the order of the fit"
            )
        parts = [joined_layers(self.layers, layers)]
        parts += [joined_layers(network.layers, its) for network, its in zip(self.more, more, strict=True)]
        if self.columns is not None:
            parts.append(self.columns.encode(self.columns.read(columns or {}, "the features")))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def check_embeddings_alone(self, what: str) -> None:
        """Refuse a head that takes more than the embeddings of one cache.

        Parameters
        ----------
        what : str
            What takes no other head, for the message.

        Raises
        ------
        HeadError
            The head takes columns, or several networks.
        """
        if self.more:
            raise HeadError(
                f"{what}: expected a head on one network, found one on {len(self.networks)}: fit one on a single cache"
            )
        if self.columns is not None:
            raise HeadError(
                f"{what}: expected a head on embeddings alone, found one with the columns "
                f"{', '.join(self.columns.names)}: fit one without --features"
            )

    def predict_proba(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Return probabilities.

        Parameters
        ----------
        X : ndarray of shape (n, D)
            Embeddings.

        Returns
        -------
        ndarray of shape (n, K), float64
            Columns in the order of ``class_names``.

        Raises
        ------
        HeadError
            For another width, or for a regression head.
        """
        if self.task == "regression":
            raise HeadError("this head predicts numbers, not classes: call predict instead of predict_proba")
        return self.model.predict_proba(self._check(X))

    def predict(self, X: NDArray[Any]) -> NDArray[Any]:
        """Return class names (n,), a boolean matrix (n, K) for multilabel, or numbers (n, 1) for regression."""
        return TASKS[self.task].decide(self.model.predict_proba(self._check(X)), self.class_names)

    def check_fingerprint(self, fingerprint: str) -> None:
        """Refuse embeddings that other weights or preprocessing made.

        Raises
        ------
        HeadError
            When ``fingerprint`` is not the one of the cache the head was fitted on.
        """
        if fingerprint != self.fingerprint:
            raise HeadError(
                f"expected embeddings of fingerprint {self.fingerprint[:12]}…, found {fingerprint[:12]}…: "
                "extract with the backbone, weights and preprocessing the head was fitted on, or fit the head again"
            )

    def _check(self, X: NDArray[Any]) -> NDArray[Any]:
        if X.ndim != 2 or X.shape[1] != self.width:
            what = f"layer {self.layer!r}" if len(self.layers) == 1 else f"layers {self.layer}, side by side,"
            if self.more:
                what += f" and the embeddings of {len(self.more)} other networks (see LoadedHead.features)"
            if self.columns is not None:
                what += f" and the columns {', '.join(self.columns.names)} (see LoadedHead.features)"
            raise HeadError(
                f"expected embeddings of shape (n, {self.width}), found {X.shape}: use the backbone and the {what} "
                "that the head was fitted on"
            )
        return X


def save_head(path: str | os.PathLike[str], head: LoadedHead) -> None:
    """Write ``head`` as one safetensors file; the same head gives the same bytes.

    Parameters
    ----------
    path : str or Path
        The file to write.
    head : LoadedHead
        What to write.
    """
    from safetensors.numpy import save

    facts = {
        "format": FORMAT,
        "format_version": _version_of(head),
        "kind": head.model.kind,
        "link": head.model.link,
        "temperature": head.model.temperature,
        "head": head.head,
        "task": head.task,
        "layer": head.layer,
        "class_names": list(head.class_names),
        "fingerprint": head.fingerprint,
        "spec": head.spec,
    }
    if len(head.layers) > 1:
        facts["layers"] = list(head.layers)
    if head.columns is not None:
        facts["columns"] = head.columns.to_json()
    if head.more:
        facts["more"] = more_facts(head.more)
    if head.model.views > 1:
        facts["views"] = head.model.views
    if head.pooling is not None:
        facts["pooling"] = asdict(head.pooling)
    names = arrays_of(head.model.kind, head.model.link)
    arrays = {name: np.ascontiguousarray(head.model.arrays[name]) for name in names}
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True)
    Path(path).write_bytes(save(arrays, metadata={"head": text}))


def _version_of(head: LoadedHead) -> int:
    """Return the version of the file: the oldest that says what the head takes."""
    if head.more:
        return SEVERAL_NETWORKS_VERSION
    if head.columns is not None:
        return COLUMNS_VERSION
    return FORMAT_VERSION if len(head.layers) == 1 else SEVERAL_LAYERS_VERSION


def load_head(path: str | os.PathLike[str], *, trust: bool = False) -> LoadedHead:
    """Load a head from a run folder or from its ``head.safetensors``.

    Parameters
    ----------
    path : str or Path
        A run folder, or the file.
    trust : bool
        Also open a ``head.joblib`` where there is no safetensors file. Opening one runs code from the file, so do it
        only with files of your own.

    Returns
    -------
    LoadedHead
        Predicts with numpy alone.

    Raises
    ------
    HeadError
        Where there is no head, or the file is not one: foreign, damaged, of a newer version, or hostile.

    Examples
    --------
    >>> load_head("/nowhere")
    Traceback (most recent call last):
    ...
    pipeline.errors.HeadError: expected a head at /nowhere, found nothing: fit one with pipeline fit-head
    """
    file = Path(path)
    if file.is_dir():
        if not (file / HEAD_FILE).exists() and (file / ESTIMATOR_FILE).exists():
            return _load_estimator(file, trust=trust)
        file = file / HEAD_FILE
    if not file.is_file() and (several := _runs_inside(file.parent)):
        raise HeadError(f"{file.parent} holds a run for each target: name one of them, such as {several[0]}")
    if not file.is_file():
        raise HeadError(f"expected a head at {file}, found nothing: fit one with pipeline fit-head")
    try:
        data = file.read_bytes()
        facts, arrays = read_arrays(data, "head")
        return _build(facts, arrays)
    except HeadError as error:
        raise HeadError(f"cannot load {file}: {error}") from None
    except (OSError, KeyError, TypeError, ValueError, RecursionError, AttributeError) as error:
        what = str(error).splitlines()[0][:200] if str(error) else ""
        raise HeadError(
            f"cannot load {file}: expected a head written by pipeline fit-head, found something else "
            f"({type(error).__name__}: {what}): fit it again, or restore it from a copy"
        ) from None


def _runs_inside(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.glob(f"*/{HEAD_FILE}")) + sorted(
        file.parent for file in folder.glob(f"*/{ESTIMATOR_FILE}")
    )


def _build(facts: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> LoadedHead:
    """Check everything against everything else."""
    if facts.get("format") != FORMAT:
        raise HeadError("a safetensors file, but no head: give a run folder of pipeline fit-head")
    if facts.get("format_version") not in VERSIONS:
        raise HeadError(
            f"expected format version {' or '.join(map(str, VERSIONS))}, found {facts.get('format_version')!r}: use "
            "the version of this program that wrote it, or a newer one"
        )
    kind, link, names, temperature = facts["kind"], facts["link"], facts["class_names"], facts["temperature"]
    if kind not in ARRAYS:
        raise HeadError(f"unknown kind {kind!r} of head: use a newer version of this program")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise HeadError("expected a list of class names")
    if len(set(names)) != len(names):
        raise HeadError("a class name occurs twice")
    if not isinstance(temperature, (int, float)) or isinstance(temperature, bool) or not 0 < temperature < 1e9:
        raise HeadError(f"expected a positive temperature, found {temperature!r}")
    spec = stated(facts["spec"], "the spec of the head")
    if not isinstance(spec, dict):
        raise HeadError("expected the cache's spec as a JSON object")
    for field in ("layer", "fingerprint", "head", "task"):
        if not isinstance(facts[field], str):
            raise HeadError(f"expected {field} as text, found {facts[field]!r}")
    layers = _layers(facts)
    if facts["task"] not in TASKS or link not in TASKS[facts["task"]].links:
        raise HeadError(
            f"the link {link!r} does not fit the task {facts['task']!r}: use a newer version of this program"
        )
    if (
        link not in ("softmax", "shares")
        if kind == "knn"
        else link == "shares" or (kind == "cosine" and link != "softmax")
    ):
        raise HeadError(f"a {kind} head has no link {link!r}")
    if set(arrays) != set(arrays_of(kind, link)):
        raise HeadError(
            f"expected arrays {', '.join(arrays_of(kind, link))}, found {', '.join(sorted(arrays)) or 'none'}"
        )
    if facts["task"] == "regression" and len(names) != 1:
        raise HeadError(f"expected one column of numbers, found {len(names)}")
    model = HeadModel(kind, arrays, link, len(names), float(temperature), views=_views(facts, layers))
    if not arrays[ARRAYS[kind][0]].ndim or model.width_of_view < 1:
        raise HeadError("an array of no width")
    for name, shape in expected_shapes(kind, model.width_of_view, len(names), arrays).items():
        if arrays[name].shape != shape:
            raise HeadError(f"expected {name} of shape {shape}, found {arrays[name].shape}")
        if not np.isfinite(arrays[name]).all():
            raise HeadError(f"{name} holds values that are not finite")
    if kind == "knn":
        _check_neighbours(arrays, len(names))
    texts = (facts["fingerprint"], facts["head"], facts["task"])
    columns, more = _columns(facts), _more(facts)
    if model.views > 1 and (columns is not None or more):
        raise HeadError("a head on several views of an image takes neither columns nor further networks")
    if columns is not None and columns.width >= model.width:
        raise HeadError(f"expected fewer than {model.width} encoded columns, found {columns.width}")
    return LoadedHead(
        replace(model), tuple(names), facts["layer"], spec, *texts, layers, _pooling(facts), columns, _more(facts)
    )


def _layers(facts: dict[str, Any]) -> tuple[str, ...]:
    """Return the layers of a head; those of a run on one layer need not be listed."""
    layers = facts.get("layers", [facts["layer"]])
    if not isinstance(layers, list) or not layers or not all(isinstance(name, str) for name in layers):
        raise HeadError(f"expected layers as a list of names, found {layers!r}")
    if len(set(layers)) < len(layers) or SEPARATOR.join(layers) != facts["layer"]:
        raise HeadError(f"expected the layers of {facts['layer']!r}, each once, found {layers!r}")
    return tuple(layers)


def _columns(facts: dict[str, Any]) -> ColumnEncoder | None:
    """Return the encoder of the columns that a head takes."""
    found = facts.get("columns")
    return None if found is None else ColumnEncoder.from_json(found)


def more_facts(more: tuple[FurtherEmbeddings, ...]) -> list[dict[str, Any]]:
    """Return what the file of a head, and a run, hold of further networks."""
    return [{"layers": list(of.layers), "spec": of.spec, "fingerprint": of.fingerprint} for of in more]


def _more(facts: dict[str, Any]) -> tuple[FurtherEmbeddings, ...]:
    """Return the further networks of a head."""
    found = facts.get("more", [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise HeadError(f"expected further networks as a list of objects, found {found!r}")
    for entry in found:
        layers = entry.get("layers")
        fits = isinstance(layers, list) and layers and all(isinstance(name, str) for name in layers)
        if not fits or not isinstance(entry.get("spec"), dict) or not isinstance(entry.get("fingerprint"), str):
            raise HeadError("expected layers, spec and fingerprint of each further network")
    return tuple(
        FurtherEmbeddings(tuple(of["layers"]), stated(of["spec"], "the spec of the head"), of["fingerprint"])
        for of in found
    )


def _views(facts: dict[str, Any], layers: tuple[str, ...]) -> int:
    """Return how many views of an image a head averages: as many as it has layers, or one."""
    views = facts.get("views", 1)
    if views not in (1, len(layers)) or isinstance(views, bool):
        raise HeadError(f"expected as many views as layers, found {views!r} and {len(layers)}")
    return int(views)


def _pooling(facts: dict[str, Any]) -> Pooling | None:
    """Return how a head answers for groups."""
    found = facts.get("pooling")
    if found is None:
        return None
    if not isinstance(found, dict) or found.keys() != {"per", "how", "temperature"}:
        raise HeadError(f"expected pooling as column, way and temperature, found {found!r}")
    per, how, temperature = found["per"], found["how"], found["temperature"]
    if not isinstance(per, str) or how not in POOLINGS:
        raise HeadError(f"expected a pooling of {', '.join(POOLINGS)} over a column, found {found!r}")
    if not isinstance(temperature, (int, float)) or isinstance(temperature, bool) or not 0 < temperature < 1e9:
        raise HeadError(f"expected a positive temperature of groups, found {temperature!r}")
    return Pooling(per, how, float(temperature))


def load_group_head(path: str | os.PathLike[str]) -> LoadedHead:
    """Load the head on mean embeddings of groups of a run that answers for groups in this way.

    Parameters
    ----------
    path : str or Path
        The run folder, or its ``head.safetensors``.

    Raises
    ------
    HeadError
        As for `load_head`.
    """
    folder = Path(path)
    return load_head((folder if folder.is_dir() else folder.parent) / GROUP_HEAD_FILE)


def _check_neighbours(arrays: dict[str, NDArray[Any]], n_classes: int) -> None:
    """Check the ranges of a k-NN head's arrays."""
    classes, count = arrays["classes"], arrays["n_neighbors"]
    if classes.dtype.kind != "i" or classes.min(initial=0) < 0 or classes.max(initial=0) >= n_classes:
        raise HeadError("a neighbour's class is none of the class names")
    if count.dtype.kind != "i" or not 1 <= int(count[0]) <= len(classes):
        raise HeadError("expected between one neighbour and as many as there are rows")
    if "metric" not in arrays:  # written by an earlier version
        return
    for name, known in (("metric", METRICS), ("weighting", WEIGHTS)):
        value = arrays[name]
        if value.dtype.kind != "i" or not 0 <= int(value[0]) < len(known):
            raise HeadError(f"expected {name} from 0 to {len(known) - 1}, found {value[0]}")
    for name in ("neighbours", "center", "scale", "smoothing"):
        if arrays[name].dtype.kind != "f":
            raise HeadError(f"expected {name} as real numbers, found {arrays[name].dtype}")
    if not (arrays["scale"] > 0).all() or not arrays["smoothing"][0] > 0:
        raise HeadError("expected scale and smoothing above 0")


def _method_of_old(estimator: Any) -> str:
    """Return the method whose scores runs were fitted on before they named it."""
    return next((method for method in METHODS if hasattr(estimator, method)), METHODS[-1])


def _load_estimator(folder: Path, *, trust: bool) -> LoadedHead:
    if not trust:
        raise HeadError(
            f"the head in {folder} is a scikit-learn estimator in {ESTIMATOR_FILE}; opening that file can run code: "
            "use --trust if it is your own, or fit one of the built-in heads"
        )
    import joblib

    try:
        facts = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        estimator = joblib.load(folder / ESTIMATOR_FILE)
        names, layers = tuple(facts["class_names"]), _layers(facts)
        model = EstimatorModel(
            "estimator",
            {},
            TASKS[facts["task"]].links[0],
            len(names),
            float(facts["temperature"]),
            notes={"estimator": estimator, "method": facts["chosen"].get("scores") or _method_of_old(estimator)},
            views=_views(facts, layers),
        )
        cache = facts["cache"]
        return LoadedHead(
            model,
            names,
            facts["layer"],
            cache["spec"],
            cache["fingerprint"],
            facts["head"],
            facts["task"],
            layers,
            _pooling(facts),
            _columns(facts),
            _more(facts),
        )
    except (OSError, KeyError, ValueError, TypeError, EOFError, ImportError, AttributeError) as error:
        raise HeadError(f"cannot load {folder / ESTIMATOR_FILE} ({error!r}): fit the head again") from None
