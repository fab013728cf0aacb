"""``open_clip:NAME[/PRETRAINED or FILE]``, ``open_clip:hf-hub:ORG/NAME[@REVISION]`` and ``open_clip:FOLDER``.

``penultimate`` is what ``encode_image`` gives, not normalised. FOLDER holds ``open_clip_config.json`` and the weights.

Axes: B batch, H W pixels, D embedding width.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.backbones import finetuned
from pipeline.backbones.hub import Repository, hub_errors
from pipeline.backbones.layers import AT_PATH
from pipeline.backbones.network import Body, hash_weights
from pipeline.backbones.processor import proven
from pipeline.backbones.weights import RANDOM, RANDOM_SEED, load_strictly, read_weights
from pipeline.core.spec import canonical_json
from pipeline.decoding.preprocess import Preprocess
from pipeline.errors import BackboneError, PipelineError, first_line, near_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    from numpy.typing import NDArray
    from PIL import Image

PREFIX = "open_clip:"
HUB, FOLDER = "hf-hub:", "local-dir:"
_NOT_OF_IMAGES = {"text_cfg", "multimodal_cfg", "custom_text"}
CONFIG = "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
_SMALL_FILES = ("*.json", "*.txt", "*.model")
"""Configuration and tokenizers."""


def names() -> list[str]:
    """Return the networks and weights that the library knows."""
    import open_clip  # seconds, for those who list it

    return [f"{PREFIX}{name}/{tag}" for name, tag in open_clip.list_pretrained()]


def build(name: str, weights: str | None) -> Body:
    """Build the image half of a CLIP network.

    Parameters
    ----------
    name : str
        See the module.
    weights : str or None
        Weights that the library knows, a file, or ``"random"``; a revision for a repository.

    Raises
    ------
    BackboneError
        No such network or weights; the weights do not fit; the preprocessing cannot be described.
    """
    tuned = weights if finetuned.backbone_file(weights) else None
    source = find(name, None if tuned else weights)
    model = source.model()
    visual = _image_half(model)
    if tuned is not None:
        load_strictly(visual, read_weights(tuned), origin=tuned)
    return Body(
        name=source.name,
        module=visual,
        preprocess=_preprocess(source.name, model),
        weights_name=source.weights_name,
        weights_origin=source.origin,
        prefix_tokens=_prefix_tokens(model.visual),
        source=source.source,
        description=source.description(),
    )


def text_tower(name: str, weights: str | None) -> OpenClipText:
    """Load the text half of a CLIP network; see `build`."""
    source = find(name, weights)
    model = source.model()
    with source.loading() as library:
        tokenizer = library.get_tokenizer(source.place)
    return OpenClipText(model, tokenizer, hash_weights(_image_half(model), source.description()), name)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a network and its weights come from.

    Attributes
    ----------
    name : str
        The backbone's.
    place : str
        What the library calls the network.
    pretrained : str or None
        What it calls the weights: a tag or a file; None for a folder, which holds them, and for random ones.
    weights_name, origin : str
        See `pipeline.backbones.layers.Weights`.
    repository : Repository or None
        Who gives the weights, for errors; None where no hub does.
    source : str
        See `pipeline.backbones.layers.Weights`.
    """

    name: str
    place: str
    pretrained: str | None
    weights_name: str
    origin: str
    repository: Repository | None = None
    source: str = ""

    def description(self) -> str:
        """Return the configuration of the image half of a folder; that of a known name is the library's own."""
        if not self.place.startswith(FOLDER):
            return ""
        settings = json.loads((Path(self.place.removeprefix(FOLDER)) / CONFIG).read_text(encoding="utf-8"))["model_cfg"]
        return canonical_json({key: value for key, value in settings.items() if key not in _NOT_OF_IMAGES})

    def model(self) -> Any:
        """Load the whole network in float32, on the CPU."""
        is_random = self.weights_name == RANDOM
        with self.loading() as library, torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            model = library.create_model(
                self.place,
                pretrained=self.pretrained,
                load_weights=not is_random,
                pretrained_text=False,
                # Without it a folder or a repository without weights gives random numbers.
                require_pretrained=not is_random,
            )
        return model.eval()

    @contextlib.contextmanager
    def loading(self) -> Iterator[ModuleType]:
        """Give the library, quiet, and turn its errors into one line."""
        import open_clip as library  # seconds, which building the network repays

        explained = hub_errors(self.repository) if self.repository else self._own_errors()
        with explained, _quiet():
            yield library

    @contextlib.contextmanager
    def _own_errors(self) -> Iterator[None]:
        try:
            yield
        except PipelineError:
            raise
        except Exception as error:  # missing, foreign and damaged files raise many kinds
            raise BackboneError(
                f"expected weights of {self.name} in {self.pretrained or self.place}, found others or damage "
                f"({first_line(error)}): name the network that they belong to"
            ) from None


def find(name: str, weights: str | None) -> Source:
    """Find the network and the weights that a name stands for.

    Raises
    ------
    BackboneError
        See `build`.
    """
    import open_clip as library  # as above

    wanted = name.removeprefix(PREFIX)
    if wanted.startswith(HUB):
        return _with_own_weights(_of_hub(wanted.removeprefix(HUB)), weights)
    if Path(wanted).is_dir():
        place = Path(wanted).resolve()
        source = Source(PREFIX + place.name, f"{FOLDER}{place}", None, AT_PATH, place.name, None, f"{PREFIX}{place}")
        return _with_own_weights(source, weights)
    network, _, given = wanted.partition("/")
    known = library.list_models()
    if network not in known:
        raise BackboneError(f"there is no backbone {name!r}: {near_names(network, known)}")
    if given and weights and given != weights:
        raise BackboneError(f"expected one set of weights, got {given!r} and --weights {weights!r}: name one")
    return _of_library(library, network, given or weights)


def _with_own_weights(source: Source, weights: str | None) -> Source:
    """Return a folder or repository with the weights that it holds, or with random ones."""
    if weights == RANDOM:
        return replace(source, weights_name=RANDOM, origin=f"seed {RANDOM_SEED}")
    if weights is not None:
        raise BackboneError(f"{source.name} holds its own weights, got --weights {weights}: leave it out")
    return source


def _of_library(library: ModuleType, network: str, weights: str | None) -> Source:
    """Return a network that the library knows, with weights that it knows, those of a file, or random ones."""
    name = PREFIX + network
    if weights == RANDOM:
        return Source(name, network, None, RANDOM, f"seed {RANDOM_SEED}")
    tags = library.list_pretrained_tags_by_model(network)
    if weights is not None and weights in tags:
        settings = library.get_pretrained_cfg(network, weights)
        _check_activation(network, weights, settings)
        hub = str(settings.get("hf_hub") or "").rstrip("/")
        repository = Repository("/".join(hub.split("/")[:2]))
        return Source(name, network, weights, weights, hub, repository)
    if weights is not None and Path(weights).is_file():
        return Source(name, network, weights, "file", Path(weights).name)
    found = f"{weights!r}: {near_names(weights, tags)}" if weights else f"none: there are {', '.join(tags[:5])}"
    raise BackboneError(f"expected weights of {name}, a known name or a file, got {found}")


def _check_activation(network: str, weights: str, settings: dict[str, Any]) -> None:
    """Refuse weights for another activation function: the library only warns, and gives other numbers."""
    wants, has = bool(settings.get("quick_gelu")), "quickgelu" in network
    if wants and not has:
        raise BackboneError(
            f"{PREFIX}{network}/{weights} was trained with another activation function: take "
            f"{PREFIX}{network}-quickgelu/{weights}"
        )


def _of_hub(text: str) -> Source:
    """Download a repository at one commit; the library then reads the folder."""
    from huggingface_hub import errors, hf_hub_download, snapshot_download  # takes half a second

    repository = Repository.parse(text)
    pinned = Repository(repository.name, repository.commit_of(CONFIG))
    with hub_errors(pinned):
        folder = snapshot_download(pinned.name, revision=pinned.revision, allow_patterns=list(_SMALL_FILES))
        for file in _WEIGHTS:
            with contextlib.suppress(errors.RemoteEntryNotFoundError):
                hf_hub_download(pinned.name, file, revision=pinned.revision)
                break
    name, commit = f"{PREFIX}{HUB}{pinned.name}", str(pinned.revision)
    return Source(name, f"{FOLDER}{folder}", None, commit, pinned.name, pinned, f"{name}@{commit}")


class _First(nn.Module):
    """The image feature of a network that gives the tokens with it."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, x: Tensor) -> Tensor:
        feature: Tensor = self.visual(x)[0]
        return feature


def _image_half(model: Any) -> nn.Module:
    """Return what ``encode_image`` runs."""
    visual: nn.Module = model.visual
    return _First(visual) if getattr(visual, "output_tokens", False) else visual


def _prefix_tokens(visual: Any) -> int:
    if hasattr(visual, "trunk"):  # a network of timm
        return int(getattr(visual.trunk, "num_prefix_tokens", 0))
    return int(hasattr(visual, "class_embedding"))


def _preprocess(name: str, model: Any) -> Preprocess:
    from open_clip.transform import PreprocessCfg, image_transform_v2  # with the library, which is loaded by now

    config = PreprocessCfg(**model.visual.preprocess_cfg)
    transform = image_transform_v2(config, is_train=False)

    def own(image: Image.Image) -> NDArray[np.float32]:
        return np.asarray(transform(image).numpy())

    height, width = config.size if isinstance(config.size, (list, tuple)) else (config.size, config.size)
    mean, std = (tuple(map(float, values)) for values in (config.mean, config.std))
    by_shorter_side = config.resize_mode == "shortest" and height == width
    candidate = Preprocess(
        resize=(height,) if by_shorter_side else (height, width),
        crop=(height, width),
        interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )
    if config.resize_mode == "longest":
        grey = config.fill_color
        candidate = replace(candidate, fit="contain", fill=(grey, grey, grey))
    elif config.resize_mode == "shortest" and not by_shorter_side:
        candidate = replace(candidate, fit="cover")
    return proven([candidate], own, f"{name}: resize mode {config.resize_mode!r}")


class OpenClipText:
    """See `pipeline.backbones.text.TextTower`."""

    def __init__(self, model: Any, tokenizer: Any, image_sha256: str, name: str) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._name = name
        self.image_sha256 = image_sha256
        self.scale = float(model.logit_scale.detach().exp())
        self.bias = 0.0 if model.logit_bias is None else float(model.logit_bias.detach())

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the text features (n, D)."""
        tokens = self._tokenizer(list(texts))
        longest = tokens.shape[1]
        # The library cuts longer texts off, and does not say so.
        more = self._tokenizer([*texts, ""], context_length=longest + 1)[:, -1]
        for text, last in zip(texts, more.tolist(), strict=False):
            if last != more[-1]:
                raise BackboneError(
                    f"{self._name} reads texts of up to {longest} tokens, got {text[:40]!r}…: shorten it"
                )
        with torch.inference_mode():
            return np.asarray(self._model.encode_text(tokens).to(torch.float32).numpy())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's remarks off the terminal: what matters here becomes an error."""
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
