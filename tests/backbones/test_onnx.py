"""``onnx:FILE``: the numbers of onnxruntime, also through OpenVINO."""

from __future__ import annotations

import copy
import json
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from pipeline.backbones import load_backbone
from pipeline.backbones.network import pool
from pipeline.embedding.from_spec import backbone_of_spec
from pipeline.engines import open_engine
from pipeline.errors import BackboneError

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.backbones import Backbone

PREPROCESS = {"resize": 20, "crop": 16, "interpolation": "bicubic", "mean": [0.5, 0.4, 0.3], "std": 0.25}
KINDS: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "fixed batch": {"batch": 3},
    "NHWC": {"layout": "NHWC"},
    "float16": {"kind": TensorProto.FLOAT16},
}


@pytest.fixture(autouse=True)
def own_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def write(
    folder: Path, *, batch: int | str = "batch", layout: str = "NCHW", kind: int = TensorProto.FLOAT, **settings: Any
) -> Path:
    """Write an encoder of two outputs: tokens (B, 16, 8), and a vector (B, 5)."""
    rng = np.random.default_rng(0)
    dtype = np.float32 if kind == TensorProto.FLOAT else np.float16
    weights = {"filter": rng.normal(size=(8, 3, 4, 4)), "head": rng.normal(size=(8, 5))}
    constants = [numpy_helper.from_array(value.astype(dtype), name) for name, value in weights.items()]
    constants.append(numpy_helper.from_array(np.array([0, 8, 16], np.int64), "shape"))
    shape = {"N": batch, "C": 3, "H": 16, "W": 16}
    image = helper.make_tensor_value_info("image", kind, [shape[axis] for axis in layout])
    outputs = [
        helper.make_tensor_value_info("last.tokens", kind, [batch, 16, 8]),
        helper.make_tensor_value_info("embedding", kind, [batch, 5]),
    ]
    nodes = [
        helper.make_node("Transpose", ["image"], ["nchw"], perm=[layout.index(axis) for axis in "NCHW"]),
        helper.make_node("Conv", ["nchw", "filter"], ["map"], strides=[4, 4]),
        helper.make_node("Reshape", ["map", "shape"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["last.tokens"], perm=[0, 2, 1]),
        helper.make_node("ReduceMean", ["last.tokens"], ["pooled"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["pooled", "head"], ["embedding"]),
    ]
    graph = helper.make_graph(nodes, "net", [image], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    folder.mkdir(exist_ok=True)
    file = folder / "net.onnx"
    onnx.save(model, file)
    file.with_suffix(".json").write_text(json.dumps({"preprocess": PREPROCESS, **settings}))
    return file


def expected(file: Path, images: np.ndarray[Any, Any], layout: str, dtype: Any) -> dict[str, torch.Tensor]:
    x = (images / np.float32(255) - np.array(PREPROCESS["mean"], np.float32)) / np.float32(0.25)
    x = x if layout == "NHWC" else x.transpose(0, 3, 1, 2)
    session = InferenceSession(str(file))
    rows = [session.run(None, {"image": x[i : i + 3].astype(dtype)}) for i in (0, 3)]
    tokens, embedding = (torch.from_numpy(np.concatenate(each).astype(np.float32)) for each in zip(*rows, strict=True))
    return {"tokens": tokens, "embedding": embedding}


def images_of(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(0, 256, (count, 16, 16, 3), np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_both_engines_give_onnxruntimes_numbers(kind: str, engine: str, tmp_path: Path) -> None:
    file = write(tmp_path, prefix_tokens=1, **KINDS[kind])
    layers = ("last_tokens", "last_tokens:cls", "last_tokens:max", "last_tokens:flatten", "embedding:flatten")
    backbone = load_backbone(f"onnx:{file}", None, layers)
    assert [layer.width for layer in backbone.layers] == [5, 8, 8, 8, 128, 5]
    images = images_of(6)
    half = kind == "float16"
    found = expected(file, images, KINDS[kind].get("layout", "NCHW"), np.float16 if half else np.float32)
    if kind == "fixed batch" and engine == "openvino":
        with pytest.raises(Exception, match="one batch size"):
            open_engine(backbone, engine=engine, device="cpu", batch_size=6)
        return
    with_rows = open_engine(backbone, engine=engine, device="cpu", batch_size=6)
    rows = {name: torch.from_numpy(value) for name, value in with_rows.run(images).items()}
    with_rows.close()
    tokens = found["tokens"]
    wanted = {"penultimate": found["embedding"], "embedding:flatten": found["embedding"]}
    wanted |= {f"last_tokens:{how}": pool(tokens, how, prefix_tokens=1) for how in ("avg", "cls", "max", "flatten")}
    for name, value in wanted.items():
        cosine = torch.nn.functional.cosine_similarity(rows[name], value).min()
        assert cosine > (0.999 if half else 0.999999), name


def test_a_copy_and_a_pickle_run_the_same_file(tmp_path: Path) -> None:
    network = load_backbone(f"onnx:{write(tmp_path)}").network
    images = torch.from_numpy(images_of(2))
    with torch.inference_mode():
        rows = [each(images)[0] for each in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network)))]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])


def spec_of(backbone: Backbone) -> dict[str, Any]:
    return backbone.to_spec()


def test_the_bytes_of_the_file_and_its_settings_are_its_identity(tmp_path: Path) -> None:
    first = spec_of(load_backbone(f"onnx:{write(tmp_path)}"))
    assert spec_of(load_backbone(f"onnx:{tmp_path / 'net.onnx'}")) == first
    assert first["backbone"] == "onnx:net.onnx"
    assert backbone_of_spec(first).to_spec() == first
    other = spec_of(load_backbone(f"onnx:{write(tmp_path, prefix_tokens=1)}"))
    assert other["weights"]["sha256"] != first["weights"]["sha256"]
    write(tmp_path)
    model = onnx.load(tmp_path / "net.onnx")
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    onnx.save(model, tmp_path / "net.onnx")
    assert spec_of(load_backbone(f"onnx:{tmp_path / 'net.onnx'}"))["weights"]["sha256"] != first["weights"]["sha256"]


def test_tensors_in_a_file_of_their_own_are_part_of_it(tmp_path: Path) -> None:
    file = write(tmp_path)
    model = onnx.load(file)
    onnx.save(model, file, save_as_external_data=True, location="tensors.bin", size_threshold=100)
    first = load_backbone(f"onnx:{file}").weights.sha256
    data = bytearray((tmp_path / "tensors.bin").read_bytes())
    data[1] ^= 1
    (tmp_path / "tensors.bin").write_bytes(data)
    assert load_backbone(f"onnx:{file}").weights.sha256 != first


def test_the_feature_is_chosen_by_name_and_pooling(tmp_path: Path) -> None:
    backbone = load_backbone(f"onnx:{write(tmp_path, output='last.tokens', pooling='cls', prefix_tokens=1)}")
    assert backbone.layers[0].width == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": "last.tokens"}, "last.tokens has 3 dimensions: say by"),
        ({"output": "nothing"}, "has the outputs last.tokens, embedding"),
        ({"preprocess": {**PREPROCESS, "crop": 20}}, r"takes images of 16 × 16, found crop \[20, 20\]"),
        ({"preprocess": {**PREPROCESS, "interpolation": "spline"}}, "expected an interpolation of nearest"),
        ({"pre": 1}, "expected 'preprocess', and if needed"),
    ],
)
def test_a_wrong_description_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=message) as caught:
        load_backbone(f"onnx:{write(tmp_path, **settings)}")
    assert "\n" not in str(caught.value)


def test_what_is_missing_or_no_onnx_file_is_named(tmp_path: Path) -> None:
    file = write(tmp_path)
    with pytest.raises(BackboneError, match="takes no other input than its own"):
        load_backbone(f"onnx:{file}", size=32)
    file.with_suffix(".json").write_text(json.dumps({"preprocess": PREPROCESS, "layout": "NHWC"}))
    with pytest.raises(BackboneError, match="found layout NHWC"):
        load_backbone(f"onnx:{file}")
    with pytest.raises(BackboneError, match="holds its weights"):
        load_backbone(f"onnx:{file}", "random")
    file.with_suffix(".json").unlink()
    with pytest.raises(BackboneError, match=r"expected the preprocessing of .* in net\.json beside it"):
        load_backbone(f"onnx:{file}")
    file.write_bytes(b"junk")
    with pytest.raises(BackboneError, match="expected an ONNX file at"):
        load_backbone(f"onnx:{file}")
    file.unlink()
    with pytest.raises(BackboneError, match="cannot read"):
        load_backbone(f"onnx:{file}")
