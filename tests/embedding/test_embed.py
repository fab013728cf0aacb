from __future__ import annotations

import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from pipeline.backbones import Backbone, load_backbone
from pipeline.decoding.image import DecodePolicy
from pipeline.embedding.choose import choose_engine
from pipeline.embedding.embed import embed
from pipeline.embedding.from_spec import backbone_of_spec, decode_of_spec, make_spec
from pipeline.embedding.settings import RunSettings
from pipeline.engines.agreement import LEAST_COSINE
from pipeline.engines.openvino import supported_precisions
from pipeline.engines.selfcheck import least_cosine
from pipeline.errors import BackboneError, EngineError, FingerprintError
from pipeline.sources import Source, open_source

if TYPE_CHECKING:
    from pathlib import Path

POLICY = DecodePolicy()


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone()


@pytest.fixture(scope="module")
def source(image_folder: Path) -> Source:
    return open_source(str(image_folder))


def _rows(source: Source, backbone: Backbone, rows: Any, **settings: Any) -> np.ndarray[Any, Any]:
    run = RunSettings(precision="float32", **settings)
    engine, _ = choose_engine(source, backbone, POLICY, run)
    found = []
    for batch, outputs in embed(source, np.asarray(rows, dtype=np.int64), backbone, engine, POLICY, run):
        found.append(outputs["penultimate"][: len(batch.rows)].copy())
    engine.close()
    return np.concatenate(found)


def test_embeddings_equal_the_slow_reference_row_by_row(source: Source, backbone: Backbone, image_folder: Path) -> None:
    """PIL decode, timm's own transform, eager float32: nothing of this project but the weights."""
    model = backbone.network.body
    config = resolve_model_data_config(timm.create_model("tf_efficientnet_lite0"))  # type: ignore[no-untyped-call]
    transform = create_transform(**config, is_training=False)
    expected = []
    with torch.inference_mode():
        for i in range(len(source)):
            image = ImageOps.exif_transpose(Image.open(image_folder / source[i].key)).convert("RGB")
            expected.append(model(transform(image)[None]).numpy()[0])
    found = _rows(source, backbone, range(len(source)))
    assert least_cosine(found, np.stack(expected)) >= 0.99999
    # each row is its own image's: nearer to its reference than to any other's
    unit = np.stack(expected) / np.linalg.norm(expected, axis=1, keepdims=True)
    assert ((found @ unit.T).argmax(1) == np.arange(len(source))).all()


@pytest.mark.slow
def test_rows_do_not_depend_on_order_workers_or_batch(source: Source, backbone: Backbone) -> None:
    straight = _rows(source, backbone, range(24))
    for settings in ({"workers": 1}, {"workers": 3}):
        order = np.random.default_rng(1).permutation(24)
        assert np.array_equal(_rows(source, backbone, order, **settings), straight[order])


def test_a_stop_ends_it_soon_and_in_order(source: Source, backbone: Backbone) -> None:
    run, stop, seconds = RunSettings(precision="float32"), threading.Event(), defaultdict[str, float](float)
    engine, _ = choose_engine(source, backbone, POLICY, run)
    seen = []
    for batch, _ in embed(source, np.arange(24), backbone, engine, POLICY, run, stop=stop, seconds=seconds):
        seen += batch.rows.tolist()
        stop.set()
    engine.close()
    assert seen == list(range(len(seen)))
    assert len(seen) < 24
    assert seconds["decode"] > 0


def test_automatic_precision_takes_the_fastest_that_agrees(source: Source, backbone: Backbone) -> None:
    engine, found = choose_engine(source, backbone, POLICY, RunSettings(device="cpu"))
    engine.close()
    assert found["images"] == 16
    tried = list(found["cosine"])
    assert tuple(tried) == tuple(reversed(supported_precisions()))[: len(tried)]
    assert tried[-1] == engine.precision
    assert found["cosine"][engine.precision] >= (0.99999 if engine.precision == "float32" else 0.999)
    assert all(found["cosine"][precision] < 0.999 for precision in tried[:-1])


@pytest.mark.slow
def test_an_engine_that_gives_other_numbers_is_found_out(
    source: Source, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.engines.openvino import OpenVinoEngine

    submit = OpenVinoEngine.submit

    def spoil(self: Any, images: Any) -> Any:
        future = submit(self, images)
        for rows in future.result().values():
            rows[:, ::2] *= 1.1
        return future

    monkeypatch.setattr(OpenVinoEngine, "submit", spoil)
    said: list[str] = []
    engine, _ = choose_engine(source, backbone, POLICY, RunSettings(device="cpu"), say=said.append)
    assert engine.name == "torch"
    assert "OpenVINO gave cosine" in said[0]
    engine.close()
    with pytest.raises(EngineError, match="use --precision float32"):
        choose_engine(source, backbone, POLICY, RunSettings(engine="openvino", precision="float32"))


@pytest.mark.parametrize(("cosine", "taken"), [(0.999995, True), (0.9985, True), (0.97, False)])
def test_more_rows_of_a_cache_are_computed_in_its_precision(
    source: Source, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, cosine: float, taken: bool
) -> None:
    """Images that fall a little short of the contract do not keep a cache from going on; the user is told."""
    precision = "mixed" if "mixed" in supported_precisions() else "float32"
    short = cosine < LEAST_COSINE[precision]
    monkeypatch.setattr("pipeline.engines.selfcheck.check", lambda engine, sample, expected: cosine)
    asked = RunSettings(engine="openvino", device="cpu", precision=precision)
    settled, said = RunSettings(engine="openvino", device="cpu").of_cache(precision), list[str]()
    if short:
        with pytest.raises(EngineError, match=rf"expected cosine {LEAST_COSINE[precision]} or more"):
            choose_engine(source, backbone, POLICY, asked)
    if not taken:
        with pytest.raises(EngineError, match=rf"expected cosine {LEAST_COSINE[precision]} or more"):
            choose_engine(source, backbone, POLICY, settled)
        return
    engine, _ = choose_engine(source, backbone, POLICY, settled, say=said.append)
    engine.close()
    assert engine.precision == precision
    assert [line.startswith(f"warning: on these images {precision} gives") for line in said] == [True] * short


def test_without_a_sample_nothing_but_float32_is_taken(backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    engine, found = choose_engine(open_source(str(tmp_path)), backbone, POLICY, RunSettings(device="cpu"))
    engine.close()
    assert (engine.precision, found["images"]) == ("float32", 0)


def test_a_spec_gives_its_backbone_back(backbone: Backbone) -> None:
    decode = DecodePolicy()
    layered = load_backbone(layers=("blocks.2:max",))
    spec = make_spec(layered, decode, dtype="float32", precision="float32")
    again = backbone_of_spec(spec)
    assert again.to_spec() == layered.to_spec()
    assert decode_of_spec(spec) == decode
    with pytest.raises(FingerprintError, match=r"mine: expected decode\.gamma absent, got 2: "):
        decode_of_spec({"decode": {**spec["decode"], "gamma": 2}}, where="mine")
    with pytest.raises(FingerprintError, match=r"expected decode\.frame first, got absent"):
        decode_of_spec({"decode": {name: value for name, value in spec["decode"].items() if name != "frame"}})
    assert spec["decode"]["jpeg_scale"] == "full"  # caches of 0.1.0 keep their fingerprint
    with pytest.raises(FingerprintError, match=r"weights\.sha256"):
        backbone_of_spec({**spec, "weights": {**spec["weights"], "sha256": "0" * 64}})
    with pytest.raises(BackboneError, match="pass it with --weights"):
        backbone_of_spec({**spec, "weights": {**spec["weights"], "name": "file"}})


def test_random_weights_come_back_from_a_spec() -> None:
    small = load_backbone("torchvision/squeezenet1_1", "random")
    spec = make_spec(small, DecodePolicy(), dtype="float32", precision="float32")
    assert backbone_of_spec(spec).weights == small.weights
