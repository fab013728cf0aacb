"""Backbones: frozen pretrained networks. One file per family; each names its networks and builds one of them."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pipeline.backbones import finetuned, identity, known
from pipeline.backbones.base import Backbone, assemble, body_at_size
from pipeline.backbones.layers import AT_PATH, Layer
from pipeline.core.spec import PENULTIMATE
from pipeline.errors import BackboneError, near_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    from pipeline.backbones.network import Body
    from pipeline.backbones.text import TextTower

__all__ = [
    "DEFAULT_BACKBONE",
    "FINE_TUNED",
    "PENULTIMATE",
    "Backbone",
    "Layer",
    "list_backbones",
    "load_backbone",
    "load_text_tower",
    "may_read_texts",
    "request_of_spec",
]

DEFAULT_BACKBONE = "efficientnet_lite0"
FINE_TUNED = finetuned.NAME


@dataclass(frozen=True, slots=True)
class Family:
    """Where the networks of a family come from.

    Attributes
    ----------
    module : str
        Has ``names() -> list[str]``, empty where the names cannot be listed, and ``build(name, weights) -> Body``; of
        dual encoders also ``text_tower(name, weights) -> TextTower``. Imported only when it is needed.
    identity : callable or None
        What a name stands for besides itself; see `pipeline.backbones.identity`. None: no run remembers this family.
    extra, packages : str, tuple of str
        The extra that installs the family, and the modules that it needs.
    takes_remote_code : bool
        Whether ``build`` and ``text_tower`` take ``trust_remote_code``.
    reads_texts : bool
        Whether the module has ``text_tower``. Not every network of such a family has a text half.
    """

    module: str
    identity: Callable[[str], Any] | None = identity.of_name
    extra: str = ""
    packages: tuple[str, ...] = ()
    takes_remote_code: bool = False
    reads_texts: bool = False


# What a name begins with, before "/" or ":".
FAMILIES = {
    "efficientnet_lite0": Family("pipeline.backbones.efficientnet_lite"),
    "torchvision": Family("pipeline.backbones.torchvision"),
    "timm": Family("pipeline.backbones.timm"),
    "transformers": Family(
        "pipeline.backbones.transformers",
        identity.of_place,
        "transformers",
        ("transformers",),
        takes_remote_code=True,
        reads_texts=True,
    ),
    "open_clip": Family(
        "pipeline.backbones.open_clip", identity.of_open_clip, "open-clip", ("open_clip",), reads_texts=True
    ),
    "hf-hub": Family("pipeline.backbones.timm_sources", identity.of_commit),
    "local-dir": Family("pipeline.backbones.timm_sources", identity.of_path),
    "onnx": Family("pipeline.backbones.onnx", identity.of_onnx, "onnx", ("onnx", "onnxruntime")),
    "python": Family("pipeline.backbones.python", None),
}


def load_backbone(
    name: str | None = None,
    weights: str | None = None,
    layers: tuple[str, ...] = (),
    size: int = 0,
    views: str = "",
    *,
    trust_remote_code: bool = False,
) -> Backbone:
    """Build a frozen network with its weights.

    Parameters
    ----------
    name : str, optional
        ``efficientnet_lite0``, ``FAMILY/NAME`` or ``FAMILY:PLACE`` with a family of `FAMILIES`; None for a fine-tuned
        run's own, or the default.
    weights : str, optional
        A name that the family knows, a ``.safetensors`` or ``.pth`` file, the run folder of a fine-tuning, or
        ``"random"``.
    layers : tuple of str
        Outputs besides ``penultimate``, ``NODE`` or ``NODE:POOLING``.
    size : int
        Height and width of the network's input, in place of the weights' own; 0 for these.
    views : str
        Further views of every image, a key of `pipeline.core.views.VIEWS`; each gives every layer once more. Empty for
        none.
    trust_remote_code : bool
        Run Python files that a repository of transformers brings with its network.

    Raises
    ------
    BackboneError
        Unknown name, weights or layer; weights that are not available or do not fit; a size that the network does not
        take.
    """
    if name:
        _check_installed(name)
    asked = _question(name, weights, layers, size, views)
    spec = known.recall(asked) if asked else None

    def build() -> Backbone:
        body = _body(name, weights, size, trust_remote_code)
        backbone = assemble(replace(body, preprocess=replace(body.preprocess, views=views)), layers)
        if asked:
            known.remember(asked, backbone.to_spec())
        return backbone

    return build() if spec is None else Backbone.of_spec(spec, build)


def load_text_tower(name: str, weights: str | None = None, *, trust_remote_code: bool = False) -> TextTower:
    """Load the text half of a dual encoder.

    Parameters
    ----------
    name, weights, trust_remote_code
        As for `load_backbone`.

    Raises
    ------
    BackboneError
        The network has none; what `load_backbone` raises.
    """
    if not _family(name).reads_texts:
        raise BackboneError(
            f"{name} has no text tower: extract with a dual encoder, such as open_clip:ViT-B-32/laion2b_s34b_b79k"
        )
    tower: TextTower = _module(name).text_tower(name, weights, **_remote_code(name, trust_remote_code))
    return tower


def may_read_texts(name: str) -> bool:
    """Return whether a network belongs to a family that has dual encoders; imports nothing."""
    family = FAMILIES.get(_family_name(name))
    return family is not None and family.reads_texts


def request_of_spec(spec: Mapping[str, Any], weights: str | None) -> tuple[str, str | None]:
    """Return name and weights by which `load_backbone` builds what a spec describes.

    Parameters
    ----------
    spec : mapping
        Of a cache or a head.
    weights : str or None
        Where its weights are now, if they came from a file, a folder or a fine-tuning.

    Raises
    ------
    BackboneError
        They did, and ``weights`` is None.
    """
    name, kind, source = spec["backbone"], spec["weights"]["name"], spec["weights"].get("source")
    if weights is None and kind in ("file", FINE_TUNED):
        what = "file" if kind == "file" else "fine-tuned run"
        raise BackboneError(f"the weights came from the {what} {spec['weights']['origin']}: pass it with --weights")
    if kind == FINE_TUNED:  # the file says where its network is described
        return name, weights
    if kind == "random":
        return source or name, kind
    if source is None:
        # timm's names of weights are ARCHITECTURE.TAG.
        given_by_name = weights is not None or name == DEFAULT_BACKBONE
        return name, weights if given_by_name else kind.partition(".")[2] or kind
    if weights is not None and kind == AT_PATH:
        return f"{_family_name(name)}:{weights}", None  # a folder or file that is somewhere else now
    return source, weights


def _question(name: str | None, weights: str | None, layers: tuple[str, ...], size: int, views: str) -> str | None:
    """Return what identifies this request for a backbone, or None where nothing is remembered."""
    file = finetuned.backbone_file(weights)
    asked = source = name or ("" if file else DEFAULT_BACKBONE)
    if file is not None:
        facts = finetuned.read_facts(file)
        source = facts.get("source", facts["backbone"])
    family = _family(source)
    if family.identity is None:
        return None
    stands_for = [family.identity(_rest(source)), *([size] if size else []), *([views] if views else [])]
    return known.question(asked, str(file) if file else weights, layers, stands_for)


def _body(name: str | None, weights: str | None, size: int, trust_remote_code: bool) -> Body:
    """Build the network; imports torch."""
    file = finetuned.backbone_file(weights)
    if file is None:
        name = name or DEFAULT_BACKBONE
        body = _module(name).build(name, weights, **_remote_code(name, trust_remote_code))
        return body_at_size(body, size) if size else body
    facts = finetuned.read_facts(file)
    if name not in (None, facts["backbone"]):
        raise BackboneError(f"{weights} holds a {facts['backbone']}, found --backbone {name}: leave it out")
    own = int(facts["preprocess"].get("size", 0))
    if size not in (0, own):
        raise BackboneError(f"--size: {weights} was fine-tuned at {own or 'its own size'}, found {size}: leave it out")
    source = facts.get("source", facts["backbone"])
    module, remote_code = _module(source), _remote_code(source, trust_remote_code)
    if not own:
        return finetuned.with_preprocess(module.build(source, str(file), **remote_code), facts, file)
    # Its tensors have the shapes of that size.
    body = finetuned.with_tensors(body_at_size(module.build(source, "random", **remote_code), own), file)
    return finetuned.with_preprocess(body, facts, file)


def list_backbones(family: str | None = None) -> list[str]:
    """Return the names of all backbones that can be listed, or of one family."""
    keys = [key for key in FAMILIES if family in (None, key) and not _missing(FAMILIES[key])]
    return [name for key in keys for name in importlib.import_module(FAMILIES[key].module).names()]


def _family_name(name: str) -> str:
    """Return what a backbone's name begins with.

    Examples
    --------
    >>> _family_name("timm/resnet18"), _family_name("hf-hub:lab/net@v2"), _family_name("efficientnet_lite0")
    ('timm', 'hf-hub', 'efficientnet_lite0')
    """
    return re.split("[/:]", name, maxsplit=1)[0]


def _rest(name: str) -> str:
    """Return what follows the family in a backbone's name."""
    return name[len(_family_name(name)) + 1 :]


def _family(name: str) -> Family:
    family = FAMILIES.get(_family_name(name))
    if family is None:
        raise BackboneError(f"there is no backbone {name!r}: {_near(name)}")
    return family


def _check_installed(name: str) -> None:
    """Refuse a backbone whose family needs something that is not installed, or that has no family.

    Raises
    ------
    BackboneError
    """
    family = _family(name)
    missing = _missing(family)
    if missing:
        raise BackboneError(
            f"the backbone {name} needs {', '.join(missing)}, not installed here: "
            f"pip install 'embedding-pipeline[{family.extra}]'"
        )


def _module(name: str) -> ModuleType:
    """Return the module of the family that a backbone's name belongs to."""
    _check_installed(name)
    return importlib.import_module(_family(name).module)


def _remote_code(name: str, trust_remote_code: bool) -> dict[str, bool]:
    """Return the argument for a family that takes it."""
    return {"trust_remote_code": trust_remote_code} if _family(name).takes_remote_code else {}


def _missing(family: Family) -> list[str]:
    return [package for package in family.packages if find_spec(package) is None]


def _near(name: str) -> str:
    """Return the networks of that name in every family, or names like it."""
    known, own = list_backbones(), name.rpartition("/")[2]
    same = [other for other in known if other.rpartition("/")[2] == own]
    return f"did you mean {', '.join(same)}?" if same else near_names(name, known)
