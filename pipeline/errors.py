"""The errors a user can act on.

Every message states in one line what was expected, what was found, and how to fix it. The command line turns them
into an exit code; everything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class PipelineError(Exception):
    """An error the user can fix. The message is one line and says how."""


class OptionError(PipelineError, TypeError):
    """A function has no such keyword, or the keyword does not take the value."""


class SourceError(PipelineError):
    """The images, or the table that lists them, cannot be used as given."""


class BackboneError(PipelineError):
    """The network, its weights or one of its layers cannot be had."""


class EngineError(PipelineError):
    """The device or the precision asked for cannot run the network."""


class CacheError(PipelineError):
    """The file is not a cache, is damaged, or cannot be written."""


class FingerprintError(CacheError):
    """The cache was made by other weights, layers, preprocessing or precision."""


class LockedError(CacheError):
    """Another process is writing the cache."""


class HeadError(PipelineError):
    """The head cannot be fitted, or a saved head cannot be used."""


class AnalysisError(PipelineError):
    """The question cannot be asked of this cache, or a part that it needs is not installed."""


def near_names(name: str, known: Iterable[str], *, most: int = 5) -> str:
    """Say which known names look like ``name``, for the end of an error message.

    Parameters
    ----------
    name : str
        What was asked for.
    known : iterable of str
        What there is.
    most : int
        How many to list.

    Returns
    -------
    str
        ``"did you mean a, b?"``, or the first known names where nothing is near.

    Examples
    --------
    >>> near_names("resnet5", ["resnet50", "vgg16"])
    'did you mean resnet50?'
    >>> near_names("zzz", ["resnet50", "vgg16"])
    'there are resnet50, vgg16'
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=most, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(near)}?"
    shown = ", ".join(names[:most])
    return f"there are {shown}{', …' if len(names) > most else ''}"


def few_names(names: Sequence[str], *, most: int = 5) -> str:
    """Return the first names, quoted, and how many there are in all.

    Examples
    --------
    >>> few_names(["a", "b"]), few_names(["a", "b", "c"], most=2)
    ("'a', 'b'", "'a', 'b', … (3 in all)")
    """
    shown = ", ".join(repr(name if len(name) <= 80 else name[:79] + "…") for name in names[:most])
    return f"{shown}, … ({len(names)} in all)" if len(names) > most else shown


def first_line(error: BaseException) -> str:
    r"""Return what a library's error says, short enough to stand inside one of ours.

    Examples
    --------
    >>> first_line(ValueError("no such file\nat line 3"))
    'no such file'
    >>> first_line(KeyError())
    'KeyError'
    """
    lines = str(error).strip().splitlines()
    return textwrap.shorten(lines[0] if lines else type(error).__name__, 120, placeholder=" …")
