"""PyTorch: CUDA, MPS and CPU."""

from __future__ import annotations

import contextlib
import queue
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.core.devices import describe_device, device_precisions
from pipeline.engines.base import Embeddings, Engine
from pipeline.engines.cuda_graph import capture_graph
from pipeline.engines.fold_batchnorm import fold_batchnorm
from pipeline.errors import EngineError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.backbones.base import Backbone

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CUDA_SLOTS, SLOTS = 3, 2
"""Batches in progress: on CUDA one is copied in, one computed, one copied out."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """The buffers of a batch on the host and on the device.

    Attributes
    ----------
    staged, images : (B, H, W, 3) uint8 Tensor
        On the host, pinned for CUDA; on the device.
    outputs : tuple of (B, D) float32 Tensor
        On the host, pinned for CUDA; one per layer.
    uploaded, computed : Event
        ``images`` hold the batch; ``outputs`` hold its rows.
    """

    staged: Tensor
    images: Tensor
    outputs: tuple[Tensor, ...]
    uploaded: Any
    computed: Any


class TorchEngine(Engine):
    """PyTorch in inference mode: channels last, batch normalisation folded, normalisation on the device.

    uint8 images go to the device, a quarter of the bytes of float32. On CUDA they go from pinned memory on a stream of
    their own while the previous batch is computed, and the forward pass is a CUDA graph. Elsewhere the same code runs
    with streams and events that do nothing.

    A batch that does not fit the device's memory is passed in parts of half the size, down to single images, from then
    on; it is returned as one batch.

    Parameters
    ----------
    backbone : Backbone
    device : torch.device
    precision : str
        Of the layers; the normalisation before and the embeddings after are float32.
    batch_size : int

    Raises
    ------
    EngineError
        The device cannot hold the network; later, from a future: not even one image fits its memory.

    Notes
    -----
    ``float32`` on CUDA switches off TF32 convolutions for the whole process: their mantissa has only ten bits.
    """

    name = "torch"

    def __init__(self, backbone: Backbone, *, device: torch.device, precision: str, batch_size: int) -> None:
        self._device = device
        self.device = describe_device(device)
        self.precision = precision
        self.precisions = device_precisions(device)
        self.batch_size = batch_size
        self._at_once = batch_size
        self._names = tuple(layer.name for layer in backbone.layers)
        on_cuda = device.type == "cuda"
        if on_cuda and precision == "float32":
            torch.backends.cudnn.allow_tf32 = False
        self._streams: Any = torch.cuda if on_cuda else torch.cpu  # those of torch.cpu do nothing
        self.in_flight = CUDA_SLOTS if on_cuda else SLOTS
        self._slots: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        network = fold_batchnorm(backbone)
        try:
            network.to(device)
            network.compute_dtype = _DTYPES[precision]
            network.body.to(_DTYPES[precision]).to(memory_format=torch.channels_last)
            for _ in range(self.in_flight):
                self._slots.put(self._slot(backbone))
            self._uploading, self._computing = (self._stream() for _ in range(2))
            self._streams.synchronize(device)  # our streams do not wait for the copy of the weights
        except RuntimeError as error:  # includes out of memory
            raise EngineError(
                f"{self.device} cannot hold the network ({first_line(error)}): free its memory, or use --device cpu"
            ) from None
        self._network: Callable[[Tensor], tuple[Tensor, ...]] = network.eval()
        self._replay: Callable[[Tensor], tuple[Tensor, ...]] | None = None
        self._launcher = ThreadPoolExecutor(1, "launch", self._streams.set_device, (device,))
        self._collector = ThreadPoolExecutor(1, "collect")

    def submit(self, images: NDArray[np.uint8]) -> Future[Embeddings]:
        """Start a batch; see `Engine.submit`."""
        return self._collector.submit(self._collect, self._launcher.submit(self._launch, images))

    def close(self) -> None:
        """Wait for launched batches, cancel the rest, and stop the threads."""
        self._launcher.shutdown(wait=False, cancel_futures=True)
        self._collector.shutdown(wait=True)  # whose tasks free the slots that a launch may be waiting for
        self._replay = None

    # ---- the launching thread: submits work to the device; on CUDA it never waits for it ----

    def _launch(self, images: NDArray[np.uint8]) -> _Slot:
        slot = self._slots.get()
        try:
            with self._one_line_errors(), torch.inference_mode():
                slot.staged.copy_(torch.from_numpy(images))
                with self._streams.stream(self._uploading):
                    slot.images.copy_(slot.staged, non_blocking=True)
                    slot.uploaded.record(self._uploading)
                with self._streams.stream(self._computing):
                    self._computing.wait_event(slot.uploaded)
                    self._compute(slot)
                    slot.computed.record(self._computing)
        except BaseException:
            self._slots.put(slot)
            raise
        return slot

    def _compute(self, slot: _Slot) -> None:
        """Fill a slot's outputs, in as many passes as the memory requires."""
        while True:
            try:
                for part in _parts(self.batch_size, self._at_once):
                    for rows, out in zip(slot.outputs, self._forward(slot.images[part]), strict=True):
                        # Only CUDA has an event to wait for before the rows are read.
                        rows[part].copy_(out, non_blocking=self._device.type == "cuda")
                return
            except torch.OutOfMemoryError:
                if self._at_once == 1:
                    raise EngineError(
                        f"{self.device} has not enough memory for a single image: use --device cpu or a smaller network"
                    ) from None
            # Outside the handler, whose traceback would keep the failed pass's tensors alive.
            self._at_once = -(-self._at_once // 2)
            self._replay = None
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self._device.type != "cuda":
            return self._network(images)
        if self._replay is None:
            self._replay = capture_graph(self._network, images, self._computing)
        return self._replay(images)

    # ---- the collecting thread: waits for the device, in the order of the batches ----

    def _collect(self, launched: Future[_Slot]) -> Embeddings:
        slot = launched.result()
        try:
            with self._one_line_errors():
                slot.computed.synchronize()
            return {name: rows.numpy().copy() for name, rows in zip(self._names, slot.outputs, strict=True)}
        finally:
            self._slots.put(slot)

    def _stream(self) -> Any:
        return self._streams.Stream(self._device) if self._device.type == "cuda" else self._streams.Stream()

    def _slot(self, backbone: Backbone) -> _Slot:
        on_cuda = self._device.type == "cuda"
        shape = (self.batch_size, *backbone.preprocess.shape)
        return _Slot(
            staged=torch.empty(shape, dtype=torch.uint8, pin_memory=on_cuda),
            images=torch.empty(shape, dtype=torch.uint8, device=self._device),
            outputs=tuple(
                torch.empty(self.batch_size, layer.width, dtype=torch.float32, pin_memory=on_cuda)
                for layer in backbone.layers
            ),
            uploaded=self._streams.Event(),
            # Sleeps while it waits: the processor is for the decode workers.
            computed=self._streams.Event(blocking=True) if on_cuda else self._streams.Event(),
        )

    @contextlib.contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise EngineError(
                f"PyTorch failed on {self.device} ({first_line(error)}): try another --device, --precision or --engine"
            ) from error


def _parts(count: int, at_once: int) -> list[slice]:
    """Divide a batch into parts of one size; the last part overlaps its predecessor instead of being shorter.

    Examples
    --------
    >>> _parts(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(3, 5, None)]
    """
    starts = [min(start, count - at_once) for start in range(0, count, at_once)]
    return [slice(start, start + at_once) for start in starts]


def default_batch(device: torch.device, image_shape: tuple[int, int, int]) -> int:
    """Return the images per batch for a device and images of (H, W, 3)."""
    if device.type != "cuda":
        return 64 if device.type == "mps" else 16
    return _cuda_batch(torch.cuda.get_device_properties(device).total_memory, image_shape)


MOST_AT_ONCE = 256
BYTES_PER_VALUE = 160
"""Bytes of device memory per byte of an image: twice the need of ResNet-50's widest layers in float32."""


def _cuda_batch(memory: int, image_shape: tuple[int, int, int]) -> int:
    """Return the largest power of two that surely fits half of a device's memory, 256 at most: more is not faster.

    By the whole memory, not by what is free now: rows are equal bit for bit only at one batch size. Where less than
    half is free, batches are halved at run time.

    Examples
    --------
    >>> _cuda_batch(24 << 30, (224, 224, 3)), _cuda_batch(24 << 30, (512, 512, 3)), _cuda_batch(4 << 30, (224, 224, 3))
    (256, 64, 64)
    """
    height, width, channels = image_shape
    fitting = memory // 2 // (height * width * channels * BYTES_PER_VALUE)
    return max(1, min(MOST_AT_ONCE, 1 << (max(1, fitting).bit_length() - 1)))
