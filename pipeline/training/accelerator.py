"""Device, precision and processes of a training, through accelerate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pipeline.core.devices import has_cuda
from pipeline.core.optional import optional_part
from pipeline.errors import EngineError

if TYPE_CHECKING:
    from pipeline.training.settings import TrainSettings


def make_accelerator(settings: TrainSettings) -> Any:
    """Return accelerate's view of this machine: one process, or those that torchrun or ``accelerate launch`` started.

    Raises
    ------
    EngineError
        accelerate is not installed, or there is no such device.
    """
    with optional_part("fine-tuning needs accelerate", "pip install 'embedding-pipeline[finetune]'", EngineError):
        from accelerate import Accelerator  # an extra
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedDataParallelKwargs
    if settings.device not in ("auto", "cpu", "cuda"):
        raise EngineError(f"expected --device auto, cpu or cuda for training, found {settings.device!r}: correct it")
    if settings.device == "cuda" and not has_cuda():
        raise EngineError("expected a CUDA device, found none: use --device cpu")
    cpu = settings.device == "cpu" or not has_cuda()
    precision = settings.precision
    if precision == "auto":
        able = torch.cpu._is_avx512_bf16_supported() if cpu else torch.cuda.is_bf16_supported()
        precision = "bfloat16" if able else "float32"
    names = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
    AcceleratorState._reset_state(reset_partial_state=True)  # from an earlier training in this process
    # Unfreezing from the top leaves parameters without a gradient in the first epochs.
    gradual = DistributedDataParallelKwargs(find_unused_parameters=settings.schedule != "lp-ft")
    return Accelerator(cpu=cpu, mixed_precision=names[precision], kwargs_handlers=[gradual])
