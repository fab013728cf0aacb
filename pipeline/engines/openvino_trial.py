"""The first try of a converted network, in a process of its own.

OpenVINO ends the process of some networks while it compiles them, as those of timm with group normalisation and
depthwise convolutions of 5 × 5. Here that is an error like any other.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from pipeline.core.system import child_environment, child_signals_held
from pipeline.engines.openvino_quiet import ov

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_CRASHES = {getattr(signal, name, None) for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE")} - {None}


def crash_of(network: Path, shape: Sequence[int], precisions: Iterable[str]) -> str:
    """Return the name of the signal that ends a process which runs a converted network; empty where it does not end.

    Other errors are left to the process that runs the network in earnest.

    Parameters
    ----------
    network : Path
        OpenVINO's file.
    shape : sequence of int
        Of a batch of images.
    precisions : iterable of str
        Those that it may be compiled for, as OpenVINO calls them.
    """
    command = [sys.executable, "-m", __name__, str(network), ",".join(map(str, shape)), *precisions]
    with child_signals_held():
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=child_environment(),
        )  # fmt: skip
    try:
        code = child.wait()
    finally:
        child.kill()
    return signal.Signals(-code).name if -code in _CRASHES else ""


def _run(network: str, shape: str, *precisions: str) -> None:
    core = ov.Core()
    for precision in precisions:
        model = core.read_model(network)
        model.reshape([int(size) for size in shape.split(",")])
        core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision}).create_infer_request().infer()


if __name__ == "__main__":
    _run(*sys.argv[1:])
