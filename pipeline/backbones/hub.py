"""Repositories of a model hub: which commit a name stands for, and what the hub answers, in one line each."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import BackboneError, PipelineError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

HUB_TIMEOUT_S = 10.0
LOG_IN = "log in with 'hf auth login' or set HF_TOKEN"


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of the hub.

    Attributes
    ----------
    name : str
        ``ORG/NAME``.
    revision : str or None
        Branch, tag or commit; None for the default branch.
    """

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Repository:
        """Read ``ORG/NAME`` or ``ORG/NAME@REVISION``.

        Raises
        ------
        BackboneError
            The text is neither.

        Examples
        --------
        >>> Repository.parse("lab/encoder@v2")
        Repository(name='lab/encoder', revision='v2')
        """
        name, _, given = text.partition("@")
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or text.endswith("@"):
            raise BackboneError(
                f"expected ORG/NAME or ORG/NAME@REVISION of a hub, or a folder, got {text!r}: correct --backbone"
            )
        return cls(name, given or None)

    def commit_of(self, file: str) -> str:
        """Return the commit that the revision stands for; downloads a small file of it.

        Raises
        ------
        BackboneError
            See `hub_errors`.
        """
        from huggingface_hub import hf_hub_download  # takes half a second

        with hub_errors(self):
            # The client keeps every file under snapshots/COMMIT/.
            local = Path(hf_hub_download(self.name, file, revision=self.revision))
        return local.parents[len(Path(file).parts) - 1].name


@contextlib.contextmanager
def quick_to_fail() -> Iterator[None]:
    """Keep the hub's client from retrying for a minute without a network: then only its local copies are tried."""
    from huggingface_hub import constants, get_session  # takes half a second

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
        offline = constants.HF_HUB_OFFLINE
    except Exception:  # no network, no proxy, or the client is offline by its own settings
        offline = True
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def hub_errors(repository: Repository) -> Iterator[None]:
    """Turn what the hub answers, and what the libraries make of it, into one line.

    Raises
    ------
    BackboneError
        The repository or its revision does not exist, is gated or private, lacks a file, is not in the local cache
        while the environment says offline, or its download broke off.
    """
    from huggingface_hub import constants

    forbidden = constants.HF_HUB_OFFLINE
    with quick_to_fail():
        try:
            yield
        except PipelineError:
            raise
        except Exception as error:  # the libraries wrap the client's errors in their own
            raise hub_error(repository, error, offline_by_setting=forbidden) from None


def hub_error(repository: Repository, error: BaseException, *, offline_by_setting: bool = False) -> BackboneError:
    """Return the error for a repository that the hub did not give."""
    from huggingface_hub import constants, errors

    name, known = repository.name, _chain(error)

    def is_a(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in known)

    if is_a(errors.GatedRepoError):
        return BackboneError(f"{name} is gated: ask for access at {constants.ENDPOINT}/{name}, then {LOG_IN}")
    if is_a(errors.RevisionNotFoundError):
        return BackboneError(f"{name} has no revision {repository.revision!r}: name a branch, a tag or a commit")
    if is_a(errors.RepositoryNotFoundError):
        return BackboneError(f"the hub has no repository {name}, or it is private: correct the name, or {LOG_IN}")
    if is_a(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        if offline_by_setting:
            return BackboneError(
                f"{name} is not in the hub's local cache, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids to "
                "download it: unset the variable, or name a folder with a copy"
            )
        return BackboneError(
            f"{name} is not in the hub's local cache, and {constants.ENDPOINT} does not answer: run again with a "
            "network, or name a folder with a copy"
        )
    if is_a(errors.EntryNotFoundError):
        missing = next(each for each in known if isinstance(each, errors.EntryNotFoundError))
        url = str(missing).rpartition("url: ")[2].rstrip(".").splitlines()
        file = url[0].rpartition("/")[2].rstrip(".") if url else "a file"
        return BackboneError(f"{name} holds no {file}: name a repository, or a revision, that holds it")
    if is_a(errors.HfHubHTTPError, ConnectionError, TimeoutError) or _is_transport(known):
        return BackboneError(
            f"the download of {name} broke off ({first_line(known[-1])}): run again to continue it, "
            "or name a folder with a copy"
        )
    return BackboneError(f"cannot use {name} ({first_line(known[0])}): name another repository or revision")


def _chain(error: BaseException | None) -> list[BaseException]:
    """Return an error and those that it was raised from or during, first the outermost."""
    out: list[BaseException] = []
    while error is not None and error not in out:
        out.append(error)
        error = error.__cause__ or error.__context__
    return out


def _is_transport(known: list[BaseException]) -> bool:
    # The client's HTTP library changed its name between versions.
    return any(base.__name__ == "TransportError" for each in known for base in type(each).__mro__)
