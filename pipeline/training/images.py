"""Training images: the rows of a cache in a shuffled order, decoded and prepared as stage 1 did, then augmented.

Axes: n images, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.core.items import Status
from pipeline.core.system import processor_count
from pipeline.embedding.pool import open_pool
from pipeline.errors import SourceError
from pipeline.sources.reopen import reopen_source

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.cache import Cache
    from pipeline.decoding.image import DecodePolicy
    from pipeline.decoding.pool import Batch
    from pipeline.decoding.preprocess import Preprocess

AUGMENTATIONS = ("none", "flip", "standard", "strong")


class CachedImages:
    """The images of a cache's rows, with a check that they are unchanged.

    Parameters
    ----------
    cache : Cache
    decode : DecodePolicy
    preprocess : Preprocess
    batch_size : int
        Images per batch.
    workers : int
        Decode processes; 0 takes one per processor.
    device : str
        The GPU for decoding, where the cache's policy has one.
    """

    def __init__(
        self,
        cache: Cache,
        decode: DecodePolicy,
        preprocess: Preprocess,
        *,
        batch_size: int,
        workers: int = 0,
        device: str = "auto",
    ) -> None:
        self.source = reopen_source(cache.source, cache.items, cache.path.parent)
        self._cache, self._decode, self._preprocess = cache, decode, preprocess
        self._batch_size, self._workers, self._device = batch_size, workers or processor_count(), device

    def batches(self, rows: NDArray[np.int64]) -> Generator[NDArray[np.uint8], None, None]:
        """Yield the prepared images (n, H, W, 3) uint8 of consecutive ``rows``, in order; each valid until the next.

        Raises
        ------
        SourceError
            An image is missing, unreadable, or has changed since it was embedded.
        """
        with open_pool(
            self.source.patient_reader(),
            self._decode,
            self._preprocess,
            batch_size=self._batch_size,
            workers=self._workers,
            device=self._device,
        ) as pool:
            for batch in pool.batches(rows, self.source.locator):
                check_unchanged(self._cache, batch)
                yield batch.images[: len(batch.rows)]
                batch.release()


def check_unchanged(cache: Cache, batch: Batch) -> None:
    """Check that the images of a batch are those that were embedded.

    Raises
    ------
    SourceError
        One is missing, unreadable, or has changed.
    """
    hint = "bring the cache up to date with pipeline extract --check-content, and fit the head again"
    for row, outcome in zip(batch.rows.tolist(), batch.outcomes, strict=True):
        same = outcome.status == Status.DONE and outcome.content_hash == cache.content_hash[row].tobytes()
        if same:
            continue
        key = cache.keys_of(np.array([row]))[0]
        if outcome.status != Status.DONE:
            raise SourceError(f"expected the image {key} of {cache.path}, found it unusable ({outcome.reason}): {hint}")
        raise SourceError(f"the image {key} has other content than when {cache.path} was made: {hint}")


def augmentation(name: str, size: tuple[int, int]) -> Callable[[NDArray[np.uint8]], Tensor]:
    """Return a function that changes prepared images at random: (n, H, W, 3) uint8 → the same as a tensor.

    Parameters
    ----------
    name : str
        ``none``; ``flip``: half of them mirrored left to right; ``standard``: also a random crop of 60 % or more of
        the area; ``strong``: also TrivialAugment [1]_.
    size : (int, int)
        H and W.

    Notes
    -----
    Randomness comes from PyTorch's generator alone, whose state a checkpoint keeps.

    References
    ----------
    .. [1] Müller, Hutter: TrivialAugment: tuning-free yet state-of-the-art data augmentation. ICCV 2021.
    """
    if name == "none":
        return _copy
    if name == "flip":
        return _flip_half
    from torchvision.transforms import v2

    steps: list[Any] = [v2.RandomResizedCrop(size, scale=(0.6, 1.0), antialias=True), v2.RandomHorizontalFlip()]
    if name == "strong":
        steps.append(v2.TrivialAugmentWide())
    change = v2.Compose(steps)

    def augment(images: NDArray[np.uint8]) -> Tensor:
        batch = _copy(images)
        return torch.stack([change(image) for image in batch.permute(0, 3, 1, 2)]).permute(0, 2, 3, 1)

    return augment


def _copy(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.array(images))


def _flip_half(images: NDArray[np.uint8]) -> Tensor:
    """Mirror images at random, all at once: one by one they cost a GPU's training a sixth of its time."""
    batch = _copy(images)
    mirrored = torch.rand(len(batch)) < 0.5
    batch[mirrored] = batch[mirrored].flip(2)
    return batch
