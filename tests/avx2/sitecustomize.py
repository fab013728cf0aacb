"""Hide AVX-512 and bfloat16 from a Python process and its children: ``make test-avx2`` puts this folder on their path.

The environment variables of `make test-avx2` make PyTorch, oneDNN (also OpenVINO's) and OpenBLAS compute in AVX2. Two
questions are answered by the processor all the same, so their answers are changed here: OpenVINO's list of what the
processor computes in, and PyTorch's question for bfloat16.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def _hide_from_openvino(openvino: ModuleType) -> None:
    asked = openvino.Core.get_property

    def get_property(self: Any, *names: Any) -> Any:
        answer = asked(self, *names)
        if names[-1] == "OPTIMIZATION_CAPABILITIES":
            return [name for name in answer if name not in ("BF16", "FP16")]
        return answer

    openvino.Core.get_property = get_property


def _hide_from_torch(cpu: ModuleType) -> None:
    for name in ("_is_avx512_supported", "_is_avx512_bf16_supported"):
        setattr(cpu, name, bool)  # bool() is False


CHANGES: dict[str, Callable[[ModuleType], None]] = {"openvino": _hide_from_openvino, "torch.cpu": _hide_from_torch}


class _Changed(importlib.abc.MetaPathFinder):
    """Find a module as without this, and change it once it is loaded: nothing is imported that is not asked for."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in CHANGES:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                CHANGES[name](module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Changed())
