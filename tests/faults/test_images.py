"""Pillow's own test images and thousands of mutated ones through the decode workers: no crash, one status each.

Get Pillow's first: ``python scripts/fetch_pillow_images.py data/pillow-images`` (or name another folder in
PILLOW_IMAGES).
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from pipeline.core.items import Status, content_hash
from pipeline.decoding.image import DecodePolicy
from pipeline.decoding.pool import DecodePool, Limits
from pipeline.decoding.preprocess import Preprocess
from pipeline.decoding.worker import prepare
from pipeline.sources.base import FileReader

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = pytest.mark.faults
MUTANTS, SEED = 5000, 20
CONTROL_EVERY = 50
PREPROCESS = Preprocess((64,), (64, 64), "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpg": ("JPEG", {"quality": 85}),
    "prog.jpg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "webp": ("WEBP", {}),
    "lossless.webp": ("WEBP", {"lossless": True}),
    "tif": ("TIFF", {"compression": "tiff_lzw"}),
    "deflate.tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "ppm": ("PPM", {}),
    "jp2": ("JPEG2000", {}),
    "avif": ("AVIF", {}),
}


def pillow_images() -> Path:
    folder = Path(os.environ.get("PILLOW_IMAGES", "data/pillow-images"))
    if not folder.is_dir():
        pytest.skip(f"no {folder}: run 'python scripts/fetch_pillow_images.py {folder}' first")
    return folder


def seeds() -> list[bytes]:
    """Return a small photograph in every format that is decoded."""
    from sklearn.datasets import load_sample_images

    photograph = Image.fromarray(load_sample_images().images[0]).crop((100, 100, 260, 220))
    found = []
    for name, options in FORMATS.values():
        file = io.BytesIO()
        photograph.save(file, name, **options)
        found.append(file.getvalue())
    return found


def mutate(data: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """Damage a file in one of the ways files get damaged, or are crafted."""
    out = bytearray(data)
    at = int(random.integers(len(out)))
    length = int(random.integers(1, 200))
    head = int(random.integers(min(len(out), 200)))
    kind = int(random.integers(9))
    if kind == 0:
        for place in random.integers(len(out), size=int(random.integers(1, 20))):
            out[place] ^= 1 << int(random.integers(8))
    elif kind == 1:
        del out[max(at, 20) :]
    elif kind == 2:
        out[at : at + length] = random.bytes(length)
    elif kind == 3:
        out[at : at + length] = bytes([int(random.choice([0, 255]))]) * length
    elif kind == 4:
        out[at:at] = out[at : at + length] * int(random.integers(1, 50))
    elif kind == 5:
        del out[at : at + length]
    elif kind == 6:  # sizes, counts and offsets stand near the beginning
        out[head : head + 4] = random.choice(np.array([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF], "<u4")).tobytes()
    elif kind == 7:
        out[head : head + 4] = random.choice(np.array([0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF], ">u4")).tobytes()
    else:
        out = out[: len(out) // 2] + bytearray(other[len(other) // 2 :])
    return bytes(out)


def through_the_pool(folder: Path, names: list[str], control: dict[str, NDArray[np.uint8]]) -> str:
    """Decode files; check what must hold for each; return a line of figures."""
    pool = DecodePool(
        FileReader(os.fsencode(folder)),
        DecodePolicy(),
        PREPROCESS,
        batch_size=16,
        workers=2,
        limits=Limits(seconds=20.0, memory=2 << 30),
    )
    found: dict[int, int] = {}
    reasons: dict[int, str] = {}
    started = time.monotonic()
    with pool:
        for batch in pool.batches(np.arange(len(names)), lambda row: os.fsencode(names[row])):
            for position, (row, outcome) in enumerate(zip(batch.rows.tolist(), batch.outcomes, strict=True)):
                assert row not in found
                found[row], reasons[row] = outcome.status, outcome.reason
                assert (outcome.status == Status.DONE) == (outcome.reason == "")
                assert "\n" not in outcome.reason
                if outcome.content_hash != bytes(16):
                    assert outcome.content_hash == content_hash((folder / names[row]).read_bytes())
                if names[row] in control:
                    assert outcome.status == Status.DONE
                    assert np.array_equal(batch.images[position], control[names[row]])
            batch.release()
    assert sorted(found) == list(range(len(names)))
    counts = Counter(Status(code).name.lower() for code in found.values())
    worst = [
        (names[row], reasons[row]) for row, code in found.items() if code in (Status.DECODER_CRASHED, Status.TIMED_OUT)
    ]
    return (
        f"{len(names)} files, {dict(counts)}, {pool.replaced} workers replaced, {len(control)} controls right, "
        f"{time.monotonic() - started:.0f} s; crashed or timed out: {worst}"
    )


def test_pillow_test_images(tmp_path: Path) -> None:
    folder = pillow_images()
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert len(names) > 1000
    print("\n" + through_the_pool(folder, names, {}))


def test_mutated_images(tmp_path: Path) -> None:
    random, originals = np.random.default_rng(SEED), seeds()
    extra = os.environ.get("PILLOW_IMAGES", "data/pillow-images")
    for file in sorted(Path(extra).rglob("*")) if Path(extra).is_dir() else ():
        if file.is_file() and 0 < file.stat().st_size < 50_000:
            originals.append(file.read_bytes())
    digest = hashlib.sha256()
    names, control = [], {}
    for number in range(MUTANTS):
        one, other = (originals[int(i)] for i in random.integers(len(originals), size=2))
        if number % 2:  # half of them from images that do decode
            one = originals[int(random.integers(len(FORMATS)))]
        data = mutate(one, other, random)
        digest.update(data)
        names.append(f"{number:05d}")
        (tmp_path / names[-1]).write_bytes(data)
        if number % CONTROL_EVERY == 0:
            whole = originals[int(random.integers(len(FORMATS)))]
            name = f"control{number:05d}"
            (tmp_path / name).write_bytes(whole)
            control[name] = prepare(whole, DecodePolicy(), PREPROCESS)
            names.append(name)
    print(
        f"\n{len(originals)} originals, mutants' SHA-256 {digest.hexdigest()[:16]}: "
        + through_the_pool(tmp_path, names, control)
    )
