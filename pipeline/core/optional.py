"""Parts that an extra installs: one that is missing is named, one that is there and cannot be loaded is not missing."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pipeline.core.memory import lacks_memory
from pipeline.errors import PipelineError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

ANALYSIS_EXTRA = "pip install 'embedding-pipeline[analysis]'"


@contextlib.contextmanager
def optional_part(needs: str, way_out: str, error: type[PipelineError] = PipelineError) -> Iterator[None]:
    """Turn a failed import inside the block into an error that says how the package is had.

    Parameters
    ----------
    needs : str
        What needs which package: ``"searching by words needs transformers"``.
    way_out : str
        Such as the command that installs it.
    error : type
        The error to raise.

    Raises
    ------
    PipelineError
        Of the type given: the package is not installed, or cannot be loaded.
    ImportError, MemoryError
        Memory is lacking: the package may be in order.
    """
    try:
        yield
    except ImportError as reason:
        if lacks_memory(reason):
            raise
        state = "is not installed" if isinstance(reason, ModuleNotFoundError) else f"fails ({first_line(reason)})"
        raise error(f"{needs}, which {state}: {way_out}") from None
