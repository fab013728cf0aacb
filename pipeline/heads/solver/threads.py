"""How many threads a product is worth."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHARED_WORK = 200_000_000
"""Multiplications from which a pass is worth sharing between threads."""


@contextlib.contextmanager
def threads_for(work: int) -> Iterator[None]:
    """Use one thread where the work (multiplications) is too small to share."""
    import torch  # keeps torch out of heads that only might need it

    before = torch.get_num_threads()
    torch.set_num_threads(before if work >= _SHARED_WORK else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
