"""``hf-hub:ORG/NAME[@REVISION]`` and ``local-dir:FOLDER``: networks that timm describes in a ``config.json``."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import nn

from pipeline.backbones.hub import Repository, hub_errors
from pipeline.backbones.layers import AT_PATH
from pipeline.backbones.timm import body_of, head_prefixes
from pipeline.backbones.weights import RANDOM, RANDOM_SEED, is_file, load_strictly, read_weights
from pipeline.core.spec import canonical_json
from pipeline.errors import BackboneError, PipelineError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.backbones.network import Body

HUB, FOLDER = "hf-hub:", "local-dir:"
CONFIG = "config.json"


def names() -> list[str]:
    """Return no names: those of a hub and of folders are not listed here."""
    return []


def build(name: str, weights: str | None) -> Body:
    """Build a network from timm's description beside its weights.

    Parameters
    ----------
    name : str
        ``hf-hub:ORG/NAME``, ``hf-hub:ORG/NAME@REVISION`` or ``local-dir:FOLDER``.
    weights : str or None
        None for those beside the description; a file, or ``"random"``.

    Raises
    ------
    BackboneError
        No such repository, revision or folder; the description is not timm's; the weights do not fit strictly.
    """
    other = weights is not None
    if weights is not None and weights != RANDOM and not is_file(weights):
        raise BackboneError(f"{name} brings its own weights, found --weights {weights}: pass a file, or leave it out")
    place = _find(name)
    with place.errors():
        description = place.description()
        if other:
            module = place.create(pretrained=False, num_classes=0)
        else:
            whole = place.create(pretrained=True)  # strictly: without num_classes=0, which lets tensors be missing
            module = place.create(pretrained=False, num_classes=0)
    facts = {"weights_name": place.weights_name, "weights_origin": place.origin}
    if weights == RANDOM:
        facts = {"weights_name": RANDOM, "weights_origin": f"seed {RANDOM_SEED}"}
    elif weights is not None:
        load_strictly(module, read_weights(weights), origin=weights, ignore=head_prefixes(module))
        facts = {"weights_name": "file", "weights_origin": Path(weights).name}
    else:
        load_strictly(module, whole.state_dict(), origin=place.source, ignore=head_prefixes(whole))
    body = body_of(description["architecture"], place.name, module=module, **facts)
    return replace(body, source=place.source, description=canonical_json(description))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a description and its weights lie.

    Attributes
    ----------
    name : str
        The backbone's: without a revision, or with the folder's own name only.
    source : str
        What timm takes, with the commit or the whole path.
    weights_name, origin : str
        See `pipeline.backbones.layers.Weights`.
    repository : Repository or None
        At its commit; None for a folder.
    """

    name: str
    source: str
    weights_name: str
    origin: str
    repository: Repository | None

    def create(self, **options: Any) -> nn.Module:
        """Build the network by timm, without weights from a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            module: nn.Module = timm.create_model(self.source, **options)
        return module

    def description(self) -> dict[str, Any]:
        """Return what decides the numbers besides the tensors: the architecture and its arguments.

        Raises
        ------
        BackboneError
            The description is not timm's.
        """
        if self.repository is None:
            file = Path(self.origin) / CONFIG
        else:
            from huggingface_hub import hf_hub_download  # takes half a second

            file = Path(hf_hub_download(self.repository.name, CONFIG, revision=self.repository.revision))
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            architecture = config["architecture"]
        except (OSError, ValueError, KeyError, TypeError):
            raise BackboneError(
                f"expected a {CONFIG} of timm, with an architecture, in {self.source}, found none: save_for_hf writes "
                "one; for a network of transformers use transformers:…"
            ) from None
        return {"architecture": architecture, "model_args": config.get("model_args", {})}

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what timm and the hub raise into one line."""
        with hub_errors(self.repository) if self.repository else contextlib.nullcontext():
            try:
                yield
            except PipelineError:
                raise
            except RuntimeError as error:  # of timm and of torch: unknown architectures, tensors that do not fit
                text = " ".join(str(error).split())
                raise BackboneError(
                    f"timm cannot build {self.source} ({first_line(RuntimeError(text))}): "
                    "correct its config.json or its weights"
                ) from None
            except Exception as error:
                if self.repository:
                    raise  # the hub's
                raise BackboneError(
                    f"timm cannot build {self.source} ({first_line(error)}): save it again by save_for_hf"
                ) from None


def _find(name: str) -> Place:
    if name.startswith(HUB):
        repository = Repository.parse(name.removeprefix(HUB))
        commit = repository.commit_of(CONFIG)
        pinned = f"{repository.name}@{commit}"
        return Place(HUB + repository.name, HUB + pinned, commit, pinned, Repository(repository.name, commit))
    path = Path(name.removeprefix(FOLDER)).resolve()
    if not path.is_dir():
        raise BackboneError(
            f"expected a folder with {CONFIG} and weights at {path}, found none: name it, or pass --weights FOLDER"
        )
    return Place(FOLDER + path.name, FOLDER + str(path), AT_PATH, str(path), None)
