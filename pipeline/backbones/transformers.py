"""``transformers:ORG/NAME[@REVISION]``, or ``transformers:FOLDER`` that ``save_pretrained`` wrote.

``penultimate`` is what the library calls the image feature: the projected ``image_features`` of a dual encoder;
elsewhere the pooled output if the checkpoint holds the pooler's weights, otherwise the class token after the last norm,
otherwise the mean of the tokens. ``pooled``, ``cls`` and ``mean`` are layers where the network has them.

Axes: B batch, C channels, H W pixels, T tokens, D embedding width.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.backbones.hub import Repository, hub_errors
from pipeline.backbones.layers import AT_PATH
from pipeline.backbones.network import Body, hash_weights
from pipeline.backbones.processor import preprocess_of
from pipeline.backbones.tower import Tower, tower_of
from pipeline.backbones.weights import RANDOM, RANDOM_SEED, load_strictly, read_weights
from pipeline.core.spec import canonical_json
from pipeline.errors import BackboneError, PipelineError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    from numpy.typing import NDArray

    from pipeline.decoding.preprocess import Preprocess

PREFIX = "transformers:"
CONFIG = "config.json"
_CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"
_WITH_PROJECTION = "VisionModelWithProjection"
_NOT_OF_IMAGES = {
    *("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures"),
    *("id2label", "label2id", "problem_type", "text_config", "text_config_dict"),
}
"""What a configuration says of other things than the image half's numbers."""


def names() -> list[str]:
    """Return no names: those of a hub are not listed here."""
    return []


def build(name: str, weights: str | None, *, trust_remote_code: bool = False) -> Body:
    """Build the image encoder of a checkpoint.

    Parameters
    ----------
    name : str
        ``transformers:ORG/NAME[@REVISION]`` or ``transformers:FOLDER``.
    weights : str or None
        A file of a fine-tuning, instead of the checkpoint's weights; ``"random"`` for random ones.
    trust_remote_code : bool
        Run the Python files of a repository that brings its own network.

    Raises
    ------
    BackboneError
        No such repository, revision or folder; weights are missing from the checkpoint, or do not fit; it is no image
        encoder; its preprocessing cannot be described.
    """
    checkpoint = open_checkpoint(name, trust_remote_code=trust_remote_code)
    tower, preprocess, _ = checkpoint.image_half(random=weights == RANDOM)
    weights_name, origin = checkpoint.weights_name, checkpoint.origin
    if weights == RANDOM:
        weights_name, origin = RANDOM, f"seed {RANDOM_SEED}"
    elif weights is not None:
        load_strictly(tower, read_weights(weights), origin=weights)
        weights_name, origin = "file", Path(weights).name
    return Body(
        name=checkpoint.name,
        module=tower,
        preprocess=preprocess,
        weights_name=weights_name,
        weights_origin=origin,
        prefix_tokens=tower.prefix_tokens,
        source=checkpoint.source,
        description=checkpoint.description(),
    )


def text_tower(name: str, weights: str | None, *, trust_remote_code: bool = False) -> TransformersText:
    """Load the text half of a checkpoint; see `build`.

    Raises
    ------
    BackboneError
        As `build`, and where the network has no text half.
    """
    checkpoint = open_checkpoint(name, trust_remote_code=trust_remote_code)
    tower, _, model = checkpoint.image_half(random=weights == RANDOM)
    if not hasattr(model, "get_text_features"):
        raise BackboneError(f"{name} has no text tower: take a dual encoder, such as a CLIP or a SigLIP")
    return TransformersText(model, checkpoint.tokenizer(), hash_weights(tower, checkpoint.description()), name)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a checkpoint lies: a folder, or a commit of a repository.

    Attributes
    ----------
    place : str
        Folder or repository, as the library takes it.
    repository : Repository or None
        At its commit; None for a folder.
    trust_remote_code : bool
    """

    place: str
    repository: Repository | None
    trust_remote_code: bool

    @property
    def name(self) -> str:
        """The backbone's: without a revision, or the path of a folder."""
        return PREFIX + (self.place if self.repository else Path(self.place).name)

    @property
    def source(self) -> str:
        """The name that gives the same checkpoint again."""
        return PREFIX + (f"{self.place}@{self.repository.revision}" if self.repository else self.place)

    @property
    def weights_name(self) -> str:
        """The commit, or ``"path"``."""
        return str(self.repository.revision) if self.repository else AT_PATH

    @property
    def origin(self) -> str:
        """Where the weights come from, for display."""
        return self.place if self.repository else Path(self.place).name

    def description(self) -> str:
        """Return the configuration of the image half, which decides numbers that no tensor shows."""
        with self._loading() as library:
            file = library.utils.cached_file(self.place, CONFIG, revision=self._common()["revision"])
            settings = json.loads(Path(file).read_text(encoding="utf-8"))
        return canonical_json({key: value for key, value in settings.items() if key not in _NOT_OF_IMAGES})

    def image_half(self, *, random: bool = False) -> tuple[Tower, Preprocess, Any]:
        """Return the image encoder with its preprocessing, and the whole network."""
        with self._loading() as library:
            model, missing = self._random_model(library) if random else self._model(library)
            # Pillow's arithmetic, which other programs can repeat: not what the machine happens to have.
            processor = library.AutoImageProcessor.from_pretrained(self.place, backend="pil", **self._common())
        preprocess = preprocess_of(processor, self.name)
        return tower_of(model, missing, preprocess.shape, self.name), preprocess, model

    def tokenizer(self) -> Any:
        """Return the tokenizer of a dual encoder's text half."""
        with self._loading() as library:
            return library.AutoTokenizer.from_pretrained(self.place, **self._common())

    def _common(self) -> dict[str, Any]:
        revision = None if self.repository is None else self.repository.revision
        # Never None: the library would ask the user, and take no answer for a yes or no.
        return {"revision": revision or "main", "trust_remote_code": self.trust_remote_code}

    def _config(self, library: ModuleType) -> Any:
        return library.AutoConfig.from_pretrained(self.place, **self._common())

    def _model(self, library: ModuleType) -> tuple[Any, set[str]]:
        """Load the network in float32; return it with the names of the tensors that the checkpoint lacks."""
        config = self._config(library)
        kind = (getattr(config, "architectures", None) or [""])[0]
        loader = getattr(library, kind) if kind.endswith(_WITH_PROJECTION) else library.AutoModel
        model, info = loader.from_pretrained(
            self.place, dtype=torch.float32, output_loading_info=True, **self._common()
        )
        return model, set(info["missing_keys"])

    def _random_model(self, library: ModuleType) -> tuple[Any, set[str]]:
        config = self._config(library)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            return library.AutoModel.from_config(config, trust_remote_code=self.trust_remote_code), set()

    @contextlib.contextmanager
    def _loading(self) -> Iterator[ModuleType]:
        """Give the library, quiet, and turn its errors into one line."""
        import transformers as library  # seconds, which building the network repays

        explained = self._folder_errors() if self.repository is None else hub_errors(self.repository)
        with explained, _quiet(library), _no_conversion(), self._own_code():
            yield library

    @contextlib.contextmanager
    def _own_code(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if "trust_remote_code" not in str(error):
                raise
            raise BackboneError(
                f"{self.name} brings Python code of its own: read it, and pass --trust-remote-code to run it here"
            ) from None

    @contextlib.contextmanager
    def _folder_errors(self) -> Iterator[None]:
        try:
            yield
        except PipelineError:
            raise
        except Exception as error:  # missing, foreign and damaged files raise many kinds
            raise BackboneError(
                f"expected a folder of save_pretrained with network and image processor at {self.place}, found "
                f"something else ({first_line(error)}): save both there"
            ) from None


def open_checkpoint(name: str, *, trust_remote_code: bool) -> Checkpoint:
    """Find the checkpoint that a name stands for; the revision of a repository becomes a commit.

    Raises
    ------
    BackboneError
        See `build`.
    """
    wanted = name.removeprefix(PREFIX)
    if Path(wanted).is_dir():
        return Checkpoint(str(Path(wanted).resolve()), None, trust_remote_code)
    repository = Repository.parse(wanted)
    pinned = Repository(repository.name, repository.commit_of(CONFIG))
    return Checkpoint(repository.name, pinned, trust_remote_code)


class TransformersText:
    """See `pipeline.backbones.text.TextTower`."""

    def __init__(self, model: Any, tokenizer: Any, image_sha256: str, name: str) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._name = name
        self.image_sha256 = image_sha256
        self.scale = float(model.logit_scale.detach().exp()) if hasattr(model, "logit_scale") else 1.0
        self.bias = float(model.logit_bias.detach()) if hasattr(model, "logit_bias") else 0.0

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the text features (n, D)."""
        config = self._model.config
        longest = getattr(
            getattr(config, "text_config", config), "max_position_embeddings", self._tokenizer.model_max_length
        )
        # SigLIP learnt on texts that are padded to the full length, and documents its call so.
        padding = (
            {"padding": "max_length", "max_length": longest} if "siglip" in config.model_type else {"padding": True}
        )
        tokens = self._tokenizer(list(texts), return_tensors="pt", **padding)
        if tokens["input_ids"].shape[1] > longest:
            counts = [len(ids) for ids in self._tokenizer(list(texts))["input_ids"]]
            text = texts[counts.index(max(counts))]
            raise BackboneError(
                f"{self._name} reads texts of up to {longest} tokens, got {max(counts)} in {text[:40]!r}…: shorten it"
            )
        with torch.inference_mode():
            out = self._model.get_text_features(**tokens)
        features = out if isinstance(out, torch.Tensor) else out.pooler_output
        return np.asarray(features.to(torch.float32).numpy())


@contextlib.contextmanager
def _no_conversion() -> Iterator[None]:
    """Keep the library from asking a service of the hub to convert checkpoints of another format, in the background."""
    before = os.environ.get(_CONVERSION)
    os.environ[_CONVERSION] = "1"
    try:
        yield
    finally:
        del os.environ[_CONVERSION]
        if before is not None:
            os.environ[_CONVERSION] = before


@contextlib.contextmanager
def _quiet(library: ModuleType) -> Iterator[None]:
    """Keep the library's remarks and bars off the terminal: what matters here becomes an error."""
    logging = library.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
