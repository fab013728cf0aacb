"""Text towers of dual encoders: texts in, vectors of the space of the image features out; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


class TextTower(Protocol):
    """The text half of a dual encoder.

    Attributes
    ----------
    image_sha256 : str
        Of the image half that it was loaded with, as in `pipeline.backbones.layers.Weights`.
    scale, bias : float
        The library's logit of an image and a text is ``scale`` · cosine + ``bias``.
    """

    image_sha256: str
    scale: float
    bias: float

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the text features (n, D), not normalised.

        Raises
        ------
        BackboneError
            A text has more tokens than the tower reads.
        """
        ...
