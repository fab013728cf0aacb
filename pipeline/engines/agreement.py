"""How close to the reference counts as equal. The only place of these thresholds; imports no torch."""

from __future__ import annotations

from enum import Enum

LEAST_COSINE = {"float32": 0.99999, "mixed": 0.999, "bfloat16": 0.999, "float16": 0.999}
"""Per row, by precision."""
LEAST_GPU_COSINE = 0.9995
"""Between embeddings of images prepared on the GPU and by Pillow; equal to the tolerance of scaled decoding."""
MIN_RESUME_COSINE = 0.99
"""Least cosine at which more rows of a cache are computed in its precision, though these miss the contract."""


class Agreement(Enum):
    """The verdict on a cosine."""

    ACCEPTED = "accepted"
    TOLERATED = "tolerated"
    REFUSED = "refused"


def agreement(cosine: float, least: float, *, fixed: bool) -> Agreement:
    """Classify a cosine to the reference.

    Parameters
    ----------
    cosine : float
    least : float
        Least cosine that counts as equal.
    fixed : bool
        For more rows of a cache: its precision is kept unless the cosine is below `MIN_RESUME_COSINE`.

    Examples
    --------
    >>> [agreement(0.995, 0.999, fixed=fixed).value for fixed in (False, True)]
    ['refused', 'tolerated']
    """
    if cosine >= least:
        return Agreement.ACCEPTED
    return Agreement.TOLERATED if fixed and cosine >= MIN_RESUME_COSINE else Agreement.REFUSED
