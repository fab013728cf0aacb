from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from pipeline.backbones import Backbone, load_backbone
from pipeline.core.system import cache_folder
from pipeline.engines import Engine, open_engine
from pipeline.engines.openvino import supported_precisions
from pipeline.engines.selfcheck import check, least_cosine, reference
from pipeline.engines.torch import TorchEngine
from pipeline.errors import EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

GOLDEN = (0.14788707, 0.4982196, 4.8574677)
"""Mean, standard deviation and maximum of the embedding of a fixed tensor, noted when it first equalled timm's."""


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("efficientnet_lite0", layers=("blocks.3:gem",))


@pytest.fixture(scope="module")
def images(backbone: Backbone, crops: list[Image.Image]) -> NDArray[np.uint8]:
    return np.stack([backbone.preprocess.apply(crop) for crop in crops[:10]])


@pytest.fixture(scope="module", params=["openvino", "torch"])
def engine(request: pytest.FixtureRequest, backbone: Backbone) -> Any:
    opened = open_engine(backbone, engine=request.param, device="cpu", batch_size=4)
    yield opened
    opened.close()


def test_rows_equal_the_slow_reference(engine: Engine, backbone: Backbone, images: NDArray[np.uint8]) -> None:
    expected = reference(backbone, images)
    assert set(expected) == {"penultimate", "blocks.3:gem"}
    assert check(engine, images, expected) >= 0.99999


def test_a_row_does_not_depend_on_its_place_or_neighbours(engine: Engine, images: NDArray[np.uint8]) -> None:
    first = engine.run(images[:4])["penultimate"]
    turned = engine.run(images[[3, 9, 1, 0]])["penultimate"]
    alone = engine.run(images[1:2])["penultimate"]
    assert np.array_equal(first[[3, 1, 0]], turned[[0, 2, 3]])
    assert np.array_equal(alone[0], first[1])


def test_batches_under_way_at_once_keep_apart(engine: Engine, images: NDArray[np.uint8]) -> None:
    batches = [np.ascontiguousarray(images[[i, i + 1, i + 2, i + 3]]) for i in range(6)]
    futures = [engine.submit(batch) for batch in batches]
    for batch, future in zip(batches, futures, strict=True):
        assert np.array_equal(future.result()["penultimate"], engine.run(batch)["penultimate"])


def test_reduced_precision_is_what_it_says(backbone: Backbone, images: NDArray[np.uint8]) -> None:
    if "bfloat16" not in supported_precisions():
        with pytest.raises(EngineError, match="choose one of these"):
            open_engine(backbone, engine="openvino", precision="bfloat16")
        return
    engine = open_engine(backbone, engine="openvino", precision="bfloat16")
    cosine = check(engine, images, reference(backbone, images))
    assert 0.98 < cosine < 0.999999  # it computes in bfloat16 indeed, and is no nonsense
    engine.close()


def test_torch_in_bfloat16(backbone: Backbone, images: NDArray[np.uint8]) -> None:
    engine = open_engine(backbone, engine="torch", device="cpu", precision="bfloat16", batch_size=4)
    cosine = check(engine, images[:4], {name: rows[:4] for name, rows in reference(backbone, images[:4]).items()})
    assert 0.98 < cosine < 0.999999
    assert engine.run(images[:2])["penultimate"].dtype == np.float32
    engine.close()


def test_a_batch_that_does_not_fit_is_halved(backbone: Backbone, images: NDArray[np.uint8]) -> None:
    engine = open_engine(backbone, engine="torch", device="cpu", batch_size=8)
    assert isinstance(engine, TorchEngine)
    whole = engine.run(images[:7])
    sizes, network = [], engine._network

    def small_memory(batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes.append(len(batch))
        if len(batch) > limit:
            raise torch.OutOfMemoryError("out of memory")
        outputs: tuple[torch.Tensor, ...] = network(batch)
        return outputs

    limit = 3
    engine._network = small_memory
    halved = engine.run(images[:7])
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert all(least_cosine(halved[name], whole[name]) >= 0.99999 for name in whole)
    limit = 0
    with pytest.raises(EngineError, match="not enough memory for a single image"):
        engine.run(images[:1])
    engine.close()


def test_a_network_that_openvino_cannot_convert_runs_on_torch(
    monkeypatch: pytest.MonkeyPatch, backbone: Backbone
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no such operation")

    monkeypatch.setattr("pipeline.engines.openvino._network", refuse)
    said: list[str] = []
    engine = open_engine(backbone, device="cpu", say=said.append)
    assert engine.name == "torch"
    assert "no such operation" in said[0]
    with pytest.raises(EngineError, match="no such operation"):
        open_engine(backbone, engine="openvino")


@pytest.mark.slow
def test_converted_networks_are_kept(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    open_engine(backbone, engine="openvino").close()
    # Beside them is what is known of the backbone by its name, if no test before has loaded it.
    files = sorted(path.name for path in cache_folder().rglob("*") if path.is_file() and path.suffix != ".json")
    assert files == ["network.bin", "network.xml", "reference.npz"]
    monkeypatch.setattr("pipeline.engines.openvino._convert", None)  # it would be called again, and fail
    open_engine(backbone, engine="openvino").close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:7"}, "there is no device cuda:7"),
        ({"device": "tpu9"}, "expected a device such as"),
        ({"engine": "openvino", "precision": "float16"}, "this processor computes in"),
    ],
)
def test_what_is_not_here_is_refused(options: dict[str, str], message: str, backbone: Backbone) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        open_engine(backbone, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_closed_engine_gives_its_memory_back() -> None:
    """Of a network of 20 MB, ten engines that were kept would hold 200 MB and more."""
    backbone, held = load_backbone("timm/resnet10t", "random"), list[int]()
    for _ in range(12):
        engine = open_engine(backbone, engine="openvino", device="cpu")
        engine.run(np.zeros((1, *backbone.preprocess.shape), np.uint8))
        engine.close()
        alive = weakref.ref(engine)
        del engine
        assert alive() is None
        held.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20)
    assert held[-1] - held[1] < 50


def test_least_cosine() -> None:
    a = np.array([[1.0, 0.0], [0.0, 0.0]])
    assert least_cosine(a, a) == 1.0
    assert least_cosine(a, np.array([[0.0, 2.0], [0.0, 0.0]])) == 0.0
    assert least_cosine(a, np.array([[1.0, 0.0], [0.0, 1.0]])) == -1.0
    assert least_cosine(a, np.array([[np.nan, 0.0], [0.0, 0.0]])) == -1.0


def test_golden_embedding_of_a_fixed_tensor() -> None:
    backbone = load_backbone()
    ramp = np.arange(224 * 224 * 3, dtype=np.uint32).reshape(1, 224, 224, 3) * 2654435761 >> 24 & 255
    with torch.inference_mode():
        row = backbone.network(torch.from_numpy(ramp.astype(np.uint8)))[0][0].numpy()
    assert np.allclose([row.mean(), row.std(), row.max()], GOLDEN, rtol=1e-3), [row.mean(), row.std(), row.max()]
