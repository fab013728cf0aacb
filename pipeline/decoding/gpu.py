"""JPEGs decoded and prepared on a CUDA device, by nvJPEG through torchvision.

Decode workers read, hash and parse headers as usual, and leave the bytes of plain JPEGs in shared memory. This module
decodes a batch of them. All code except nvJPEG also runs on the CPU, where it is tested.

Axes: B images, H W pixels, E bytes.
"""

from __future__ import annotations

import io
import time
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pipeline.core.devices import pick_devices
from pipeline.decoding.image import PILLOW, DecodePolicy
from pipeline.decoding.pool import DecodePool
from pipeline.decoding.resample import BLACK
from pipeline.errors import EngineError, first_line

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.core.items import Reader
    from pipeline.decoding.pool import Batch
    from pipeline.decoding.preprocess import Preprocess

RESAMPLING = ("bilinear", "bicubic")
"""Which PyTorch resizes with antialiasing, as Pillow does."""
AT_ONCE = 32
"""JPEGs per call; with `GPU_PIXELS` it bounds the full-size pixels on the device."""


def decode_device(device: str) -> torch.device:
    """Return the GPU that decodes: the first where several compute.

    Parameters
    ----------
    device : str
        See `pipeline.engines.open_engine`.

    Raises
    ------
    EngineError
        It is no CUDA device.
    """
    first = pick_devices(device)[0]
    if first.type != "cuda":
        found = "none" if device == "auto" else f"--device {device}"
        raise EngineError(
            f"--decode gpu needs a CUDA device, found {found}: leave it out, or use a cache made without it"
        )
    return first


class GpuDecodePool(DecodePool):
    """A decode pool whose plain JPEGs are decoded and prepared on a device; see `is_plain_jpeg`.

    Images that the device refuses go to decode workers. A damaged file therefore has its usual outcome, in a process
    of its own.

    Parameters
    ----------
    reader, policy, preprocess, batch_size, workers, slots, limits
        See `pipeline.decoding.pool.DecodePool`.
    device : torch.device
        Where to decode.

    Raises
    ------
    EngineError
        The weights' resampling is not one of `RESAMPLING`, or the device cannot decode.
    """

    def __init__(
        self,
        reader: Reader,
        policy: DecodePolicy,
        preprocess: Preprocess,
        *,
        device: torch.device,
        batch_size: int,
        workers: int,
        **others: Any,
    ) -> None:
        if preprocess.interpolation not in RESAMPLING:
            raise EngineError(
                f"expected weights that resize {' or '.join(RESAMPLING)} for --decode gpu, found "
                f"{preprocess.interpolation}: leave it out"
            )
        if preprocess.square or preprocess.fill != BLACK:
            raise EngineError("--decode gpu cannot pad images with a colour, as these weights expect it: leave it out")
        _check_decoder(device)
        super().__init__(reader, policy, preprocess, batch_size=batch_size, workers=workers, **others)
        self._device, self._preprocess = device, preprocess
        self._refused: DecodePool | None = None
        sizes = {**others, "batch_size": batch_size, "workers": workers, "slots": 1}
        pillow = replace(policy, jpeg_decoder=PILLOW)
        self._pool_of_refused: Callable[[], DecodePool] = lambda: DecodePool(reader, pillow, preprocess, **sizes)

    def batches(
        self, rows: NDArray[np.int64], locator: Callable[[int], Any], stop: threading.Event | None = None
    ) -> Iterator[Batch]:
        """Yield the batches, prepared; see `DecodePool.batches`."""
        for batch in super().batches(rows, locator, stop):
            refused = self._prepare(batch)
            if refused and not self._prepare_refused(batch, refused, locator, stop):
                return
            yield batch

    def close(self) -> None:
        """End the workers at once."""
        super().close()
        if self._refused is not None:
            self._refused.close()

    def _prepare(self, batch: Batch) -> list[int]:
        """Decode the JPEGs that were left for the device into their slots; return those it refused."""
        left = [outcome for outcome in batch.outcomes if outcome.encoded]
        refused = []
        for start in range(0, len(left), AT_ONCE):
            part, started = left[start : start + AT_ONCE], time.perf_counter()
            encoded = [torch.from_numpy(batch.encoded[o.position, : o.encoded]) for o in part]
            images = prepare_jpegs(encoded, self._preprocess, self._device)
            share = (time.perf_counter() - started) / len(part)
            for outcome, image in zip(part, images, strict=True):
                if image is None:
                    refused.append(outcome.position)
                    continue
                batch.images[outcome.position] = image
                batch.outcomes[outcome.position] = replace(outcome, decode_s=outcome.decode_s + share)
        return refused

    def _prepare_refused(
        self, batch: Batch, positions: list[int], locator: Callable[[int], Any], stop: threading.Event | None
    ) -> bool:
        """Let workers decode these; return whether they finished before a stop."""
        self._refused = self._refused or self._pool_of_refused()
        through = False
        for other in self._refused.batches(batch.rows[positions], locator, stop):  # one, as it fits into one
            batch.images[positions] = other.images[: len(positions)]
            for position, outcome in zip(positions, other.outcomes, strict=True):
                batch.outcomes[position] = replace(outcome, position=position)
            other.release()
            through = True
        return through


def prepare_jpegs(
    encoded: list[Tensor], preprocess: Preprocess, device: torch.device
) -> list[NDArray[np.uint8] | None]:
    """Decode and prepare JPEGs on a device.

    Parameters
    ----------
    encoded : list of (E,) uint8 Tensor
        On the host; one at least.
    preprocess : Preprocess
    device : torch.device

    Returns
    -------
    list of (H, W, 3) uint8, or None
        None for one that the decoder refuses, or that does not fit the device's memory even alone.
    """
    try:
        images = [prepared(image, preprocess) for image in _decoded(encoded, device)]
        return list(torch.stack(images).permute(0, 2, 3, 1).cpu().numpy())
    except RuntimeError:  # of which a lack of memory is one; nothing comes back of a call in which one was refused
        if len(encoded) == 1:
            return [None]
    half = len(encoded) // 2
    return prepare_jpegs(encoded[:half], preprocess, device) + prepare_jpegs(encoded[half:], preprocess, device)


def prepared(image: Tensor, preprocess: Preprocess) -> Tensor:
    """Resize and crop as `Preprocess.apply` does, where the image is: (3, any, any) uint8 → (3, H, W) uint8."""
    height, width = image.shape[1:]
    new_width, new_height = preprocess.resized(width, height)
    pixels = image[None].float()
    for size in ((height, new_width), (new_height, new_width)):  # as Pillow: two passes, each to uint8
        pixels = functional.interpolate(
            pixels, size, mode=preprocess.interpolation, align_corners=False, antialias=True
        )
        pixels = pixels.round_().clamp_(0, 255)
    (left, top), (height, width) = preprocess.corner(new_width, new_height), preprocess.crop
    # What is negative is cut off, what is positive is filled with black.
    return functional.pad(pixels[0].to(torch.uint8), (-left, left + width - new_width, -top, top + height - new_height))


def _check_decoder(device: torch.device) -> None:
    """Check that a decoder exists: one that refuses every image would only be slow."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    try:
        _decoded([torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)], device)
    except RuntimeError as error:
        raise EngineError(
            f"expected {device} to decode JPEGs for --decode gpu, but it cannot ({first_line(error)}): leave it out"
        ) from None


def _decoded(encoded: list[Tensor], device: torch.device) -> list[Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg

    if device.type == "cuda":
        # It writes on its own stream, into memory that cancelled work of this stream may still write to.
        torch.cuda.current_stream(device).synchronize()
    with warnings.catch_warnings():
        # It is deprecated for TorchCodec, which would be one more package, of one PyTorch version each.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        images: list[Tensor] = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    return images
