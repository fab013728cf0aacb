"""Decoding on a device, with the CPU as the device: everything but nvJPEG itself."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import open_cache
from pipeline.backbones import load_backbone
from pipeline.core.items import Status
from pipeline.core.spec import fingerprint
from pipeline.decoding import gpu
from pipeline.decoding.gpu import GpuDecodePool, prepare_jpegs
from pipeline.decoding.image import GPU, GPU_BYTES, DecodePolicy, is_plain_jpeg
from pipeline.decoding.pool import DecodePool
from pipeline.decoding.preprocess import Preprocess
from pipeline.decoding.worker import prepare
from pipeline.embedding.from_spec import decode_of_spec, make_spec
from pipeline.embedding.ray import RayExecutor
from pipeline.embedding.settings import RunSettings
from pipeline.engines.selfcheck import least_cosine
from pipeline.errors import EngineError, FingerprintError
from pipeline.sources import open_source
from pipeline.stages.extract import ExtractSettings, extract
from tests.cli.run import run_command

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.decoding.pool import Batch

CPU = torch.device("cpu")
ON_GPU = DecodePolicy(jpeg_decoder=GPU)
SETTINGS = ExtractSettings(decode=ON_GPU, run=RunSettings(precision="float32", workers=1))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90, "subsampling": 0, **options})
    return file.getvalue()


def damaged(data: bytes) -> bytes:
    """Spoil the Huffman tables of a JPEG, which no header check looks at."""
    start = data.index(b"\xff\xc4") + 4
    return data[:start] + b"\xff" * 20 + data[start + 20 :]


def turned(way: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = way
    return exif


def preprocess(**others: Any) -> Preprocess:
    plain = Preprocess((256,), (224, 224), "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return replace(plain, **others)


@pytest.fixture
def device_is_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "decode_device", lambda device: CPU)


@pytest.fixture(scope="module")
def mixed_folder(
    crops: list[Image.Image], photographs: list[Image.Image], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a folder with what a GPU may decode, and with what it may not or cannot."""
    root = tmp_path_factory.mktemp("mixed")
    for i, crop in enumerate(crops[:6]):
        (root / f"plain{i}.jpg").write_bytes(jpeg(crop))
    (root / "photo.jpg").write_bytes(jpeg(photographs[0], subsampling="4:2:0"))
    (root / "small.jpg").write_bytes(jpeg(crops[10], subsampling="4:2:0"))
    (root / "turned.jpg").write_bytes(jpeg(crops[6], exif=turned(6)))
    (root / "grey.jpg").write_bytes(jpeg(crops[7].convert("L")))
    (root / "cmyk.jpg").write_bytes(jpeg(crops[7].convert("CMYK")))
    (root / "damaged.jpg").write_bytes(damaged(jpeg(crops[8])))
    (root / "cut.jpg").write_bytes(jpeg(crops[8])[:-200])
    (root / "large.jpg").write_bytes(jpeg(Image.new("RGB", (700, 500))))
    crops[9].save(root / "other.png")
    return root


@pytest.mark.parametrize(
    ("how", "most"),
    [
        (preprocess(), 1),
        (preprocess(interpolation="bilinear"), 2),
        (preprocess(resize=(200, 230), crop=(200, 230)), 16),  # of two passes in the other order, in Pillow 13
        (preprocess(resize=(100,), crop=(150, 128)), 2),  # padded
    ],
)
def test_pixels_are_those_of_pillow_but_for_rounding(crops: list[Image.Image], how: Preprocess, most: int) -> None:
    encoded = [jpeg(crop) for crop in crops]
    found = prepare_jpegs([torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in encoded], how, CPU)
    expected = np.stack([prepare(data, DecodePolicy(), how) for data in encoded]).astype(int)
    difference = np.abs(np.stack([image for image in found if image is not None]) - expected)
    assert difference.mean() < (0.01 if most < 3 else 0.1)
    assert difference.max() <= most


def test_only_the_image_that_is_refused_is_missing(crops: list[Image.Image]) -> None:
    encoded = [jpeg(crop) for crop in crops[:5]]
    encoded[3] = damaged(encoded[3])
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in encoded]
    found = prepare_jpegs(tensors, preprocess(), CPU)
    assert [image is None for image in found] == [False, False, False, True, False]
    alone = prepare_jpegs(tensors[4:], preprocess(), CPU)
    assert np.array_equal(np.stack(found[4:]), np.stack(alone))  # type: ignore[arg-type]


def test_a_plain_jpeg_is_one_that_no_policy_changes(crops: list[Image.Image]) -> None:
    image = crops[0]
    plain = jpeg(image)
    for data in (plain, jpeg(image, progressive=True), jpeg(image, exif=turned(1))):
        assert is_plain_jpeg(data, ON_GPU, 256)
    others = {
        "turned": jpeg(image, exif=turned(3)),
        "grey": jpeg(image.convert("L")),
        "cmyk": jpeg(image.convert("CMYK")),
        "rgb": jpeg(image, keep_rgb=True),
        "cut": plain[:-2],
        "header only": plain[:300] + b"\xff\xd9",
        "large": plain[:-2] + bytes(GPU_BYTES) + plain[-2:],
        "nothing": b"",
    }
    png = io.BytesIO()
    image.save(png, "PNG")
    others["png"] = png.getvalue() + b"\xff\xd9"
    assert [name for name, data in others.items() if is_plain_jpeg(data, ON_GPU, 256)] == []
    subsampled = jpeg(image, subsampling="4:2:0")
    assert is_plain_jpeg(subsampled, ON_GPU, int(min(image.size) / 1.45))
    assert not is_plain_jpeg(subsampled, ON_GPU, int(min(image.size) / 1.44))
    assert not is_plain_jpeg(plain, replace(ON_GPU, max_pixels=image.width * image.height - 1), 256)
    assert not is_plain_jpeg(plain, replace(ON_GPU, formats=("PNG",)), 256)


def test_a_mixed_batch_has_the_outcomes_it_always_has(mixed_folder: Path) -> None:
    source = open_source(str(mixed_folder))
    policy, rows = DecodePolicy(max_pixels=300_000), np.arange(len(source))

    def batches(pool: DecodePool) -> list[tuple[np.ndarray[Any, Any], Batch]]:
        with pool:
            found = []
            for batch in pool.batches(rows, source.locator):
                found.append((batch.images[: len(batch.rows)].copy(), batch))
                batch.release()
            return found

    sizes: dict[str, Any] = {"batch_size": 8, "workers": 1}
    by_gpu = GpuDecodePool(source.reader(), replace(policy, jpeg_decoder=GPU), preprocess(), device=CPU, **sizes)
    expected = batches(DecodePool(source.reader(), policy, preprocess(), **sizes))
    found = batches(by_gpu)
    handed_over = []
    for (images, batch), (expected_images, expected_batch) in zip(found, expected, strict=True):
        assert batch.rows.tolist() == expected_batch.rows.tolist()
        for row, outcome, wanted, image, expected_image in zip(
            batch.rows.tolist(), batch.outcomes, expected_batch.outcomes, images, expected_images, strict=True
        ):
            took: dict[str, Any] = dict.fromkeys(("read_s", "decode_s", "fetch_s"), 0)
            assert replace(outcome, encoded=0, **took) == replace(wanted, **took)
            if outcome.encoded:
                handed_over.append(source[row].key)
                assert np.abs(image.astype(int) - expected_image).max() <= 3
            elif outcome.status == Status.DONE:
                assert np.array_equal(image, expected_image)
    assert handed_over == ["photo.jpg", *(f"plain{i}.jpg" for i in range(6))]
    failed = {source[int(batch.rows[o.position])].key for _, batch in found for o in batch.outcomes if o.reason}
    assert failed == {"damaged.jpg", "cut.jpg", "large.jpg"}


def test_the_spec_names_the_gpu_and_stays_as_it_was_without() -> None:
    backbone = load_backbone("torchvision/squeezenet1_1", "random")
    before, after = (make_spec(backbone, d, dtype="float32", precision="float32") for d in (DecodePolicy(), ON_GPU))
    assert set(before["decode"]) == {
        "orientation", "background", "depth", "frame", "max_pixels", "formats", "jpeg_scale"
    }  # fmt: skip
    assert after["decode"] == before["decode"] | {"jpeg_decoder": "gpu"}
    assert fingerprint(before) != fingerprint(after)
    assert decode_of_spec(before) == DecodePolicy()
    assert decode_of_spec(after) == ON_GPU


@pytest.mark.slow
@pytest.mark.usefixtures("device_is_cpu")
def test_a_cache_by_the_gpu_is_checked_and_is_another(mixed_folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    summary = extract(str(mixed_folder), tmp_path / "gpu.h5", SETTINGS, say=said.append)
    assert (summary.computed, summary.failed, said) == (13, 2, [])
    cache = open_cache(tmp_path / "gpu.h5")
    assert cache.spec["decode"]["jpeg_decoder"] == "gpu"
    check = cache.self_check["gpu_decode"]
    assert check["images"] == 8  # the 700 × 500 one too
    assert 0.9995 <= check["cosine"] <= 1
    by_pillow = replace(SETTINGS, decode=DecodePolicy())
    extract(str(mixed_folder), tmp_path / "cpu.h5", by_pillow)
    other = open_cache(tmp_path / "cpu.h5")
    done = cache.status == Status.DONE
    assert np.array_equal(cache.status, other.status)
    assert np.array_equal(cache.content_hash, other.content_hash)
    assert least_cosine(cache.embeddings[done], other.embeddings[done]) >= 0.9995
    names = ("turned.jpg", "grey.jpg", "cmyk.jpg", "other.png", "small.jpg")
    by_pillow_too = [cache.keys.tolist().index(name) for name in names]
    assert np.array_equal(cache.embeddings[by_pillow_too], other.embeddings[by_pillow_too])
    assert extract(str(mixed_folder), tmp_path / "gpu.h5", SETTINGS).computed == 0
    with pytest.raises(FingerprintError, match=r"expected decode\.jpeg_decoder absent, got gpu"):
        extract(str(mixed_folder), tmp_path / "gpu.h5", by_pillow)


@pytest.mark.slow
@pytest.mark.usefixtures("device_is_cpu")
def test_a_device_that_gives_other_pixels_is_left_out(
    mixed_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retry = replace(SETTINGS, retry_failed=True)
    extract(str(mixed_folder), tmp_path / "sound.h5", SETTINGS)
    whole = gpu.prepared
    monkeypatch.setattr(gpu, "prepared", lambda image, how: 255 - whole(image, how))
    said: list[str] = []
    path = tmp_path / "c.h5"
    extract(str(mixed_folder), path, SETTINGS, say=said.append)
    assert len(said) == 1
    assert said[0].startswith("decoding on the CPU: images decoded on the GPU gave cosine 0.")
    assert "jpeg_decoder" not in open_cache(path).spec["decode"]
    assert open_cache(path).self_check["gpu_decode"]["cosine"] < 0.9995
    assert extract(str(mixed_folder), path, SETTINGS, say=said.append).computed == 0  # the same command goes on
    assert said[1].startswith(f"decoding on the CPU, as {path} was begun")
    before = (tmp_path / "sound.h5").read_bytes()
    plain = open_cache(tmp_path / "sound.h5")
    with pytest.raises(FingerprintError, match=r"\(decode\.jpeg_decoder\)"):
        extract(_without_failures(mixed_folder, tmp_path), tmp_path / "sound.h5", retry)
    assert open_cache(tmp_path / "sound.h5").spec == plain.spec
    assert (tmp_path / "sound.h5").read_bytes() == before


def _without_failures(folder: Path, tmp_path: Path) -> str:
    """Return a copy of the folder with one more sound JPEG in it: work to do, of which a sample can be taken."""
    import shutil

    shutil.copytree(folder, tmp_path / "more")
    shutil.copy(folder / "plain0.jpg", tmp_path / "more" / "new.jpg")
    return str(tmp_path / "more")


def test_without_cuda_it_says_so_in_one_line(
    mixed_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command = ["extract", str(mixed_folder), "-o", str(tmp_path / "c.h5"), "--decode", "gpu"]
    result = run_command(*command)
    assert result.exit_code == 1
    assert result.stderr.endswith(
        "error: --decode gpu needs a CUDA device, found none: leave it out, or use a cache made without it\n"
    )
    assert list(tmp_path.glob("*.h5")) == []
    assert "found --device cpu" in run_command(*command, "--device", "cpu").stderr


def test_a_device_that_decodes_nothing_is_an_error(mixed_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(encoded: Any, device: Any) -> Any:
        raise RuntimeError("not compiled with nvJPEG support")

    monkeypatch.setattr(gpu, "_decoded", missing)
    source = open_source(str(mixed_folder))
    with pytest.raises(EngineError, match=r"it cannot \(not compiled with nvJPEG support\): leave it out"):
        GpuDecodePool(source.reader(), ON_GPU, preprocess(), device=CPU, batch_size=2, workers=1)


def test_what_does_not_go_together_is_refused(mixed_folder: Path) -> None:
    source = open_source(str(mixed_folder))
    with pytest.raises(EngineError, match="found lanczos"):
        GpuDecodePool(source.reader(), ON_GPU, preprocess(interpolation="lanczos"), device=CPU, batch_size=2, workers=1)
    cluster, nothing = object.__new__(RayExecutor), np.arange(0)
    with pytest.raises(EngineError, match="--ray"):
        cluster.open(source, nothing, None, ON_GPU, None, stop=None, say=None)  # type: ignore[arg-type]
