"""CUDA graphs: a forward pass recorded once and replayed, without Python and kernel launches between operations.

All batches have one shape, which is what a graph needs. Recording costs a few passes, and every batch of an engine is
a replay of the same recording, the first one too, so that a row does not depend on how long the run was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

WARM_UP_PASSES = 2
"""Before recording: libraries choose kernels and allocate their workspaces then, which a recording must not see."""


def capture_graph(
    network: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor, stream: torch.cuda.Stream
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Return a function that computes ``network`` for batches of this shape.

    Parameters
    ----------
    network : callable
        (B, H, W, 3) uint8 → tuple of (B, D), all on the device.
    images : (B, H, W, 3) uint8 Tensor
        On the device.
    stream : torch.cuda.Stream
        The current one; the recording is made and replayed on it.

    Returns
    -------
    callable
        Its outputs are overwritten by the next call. A network that cannot be recorded, such as one that inspects
        its values, is returned itself.

    Raises
    ------
    torch.OutOfMemoryError
        A batch of this size does not fit.
    """
    for _ in range(WARM_UP_PASSES):
        network(images)
    stream.synchronize()
    inputs, graph = images.clone(), torch.cuda.CUDAGraph()
    try:
        # Other threads may copy and allocate meanwhile, for other devices; that is no error of this recording.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = network(inputs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return network

    def replay(batch: Tensor) -> tuple[Tensor, ...]:
        inputs.copy_(batch, non_blocking=True)
        graph.replay()
        return outputs

    return replay
