"""Ask the engines whether AVX-512 and bfloat16 are hidden from them: ``make test-avx2`` runs it first."""

from __future__ import annotations

import openvino
import openvino.opset8 as operations
import torch

PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}


def primitives() -> str:
    """Return the names of what OpenVINO computes a convolution with, such as ``brgconv_avx2_f32``."""
    images = operations.parameter([1, 16, 32, 32])
    weights = operations.constant(torch.rand(32, 16, 3, 3).numpy())
    network = operations.convolution(images, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    compiled = openvino.Core().compile_model(openvino.Model([network], [images]), "CPU", PRECISION)
    names = (str(operation.get_rt_info()["primitiveType"]) for operation in compiled.get_runtime_model().get_ops())
    return " ".join(names)


def main() -> None:
    """Fail where an engine sees what should be hidden."""
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert "BF16" not in capabilities, capabilities
    assert "avx512" not in primitives(), primitives()
    assert torch.backends.cpu.get_cpu_capability() != "AVX512"
    assert not torch.cpu._is_avx512_bf16_supported()
    print("hidden: AVX-512 and bfloat16")


if __name__ == "__main__":
    main()
