from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from pipeline.analysis import duplicates
from pipeline.analysis.duplicates import find_duplicates
from pipeline.analysis.pixels import MOST_DIFFERENCE, pixel_similarity, small_copies
from pipeline.errors import AnalysisError
from tests.analysis.archive import archive, png

if TYPE_CHECKING:
    from collections.abc import Callable


def grey(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "resized": lambda image: png(image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.BICUBIC)),
    "recompressed": lambda image: png(image, format="JPEG", quality=75),
    "cropped": lambda image: png(image.crop((0, 0, round(image.width * 0.95), round(image.height * 0.95)))),
    "cropped on the other side": lambda image: png(
        image.crop((round(image.width * 0.05), round(image.height * 0.03), image.width, round(image.height * 0.98)))
    ),
}


@pytest.fixture(scope="module")
def photographs_cut(crops: list[Image.Image]) -> list[Image.Image]:
    # A piece of blue sky shows nothing that could be told from another piece.
    return [crop for crop in crops if min(crop.size) > 90 and np.asarray(crop.convert("L")).std() > 20][:12]


def planted(cuts: list[Image.Image]) -> tuple[Any, list[tuple[int, int]]]:
    """Return photographs, each followed by its copies; the embeddings are of no help."""
    images: list[bytes] = []
    pairs: list[tuple[int, int]] = []
    for cut in cuts:
        first = len(images)
        images.append(png(cut))
        for change in CHANGES.values():
            pairs.append((first, len(images)))
            images.append(change(cut))
    cache = archive(len(images), images=False)
    cache.images = dict(enumerate(images))
    return cache, pairs


def test_copies_are_found_and_nothing_else(photographs_cut: list[Image.Image]) -> None:
    cache, pairs = planted(photographs_cut)
    found = find_duplicates(cache)
    group = dict(zip(found.rows.tolist(), found.table["group"].tolist(), strict=True))
    hits = [first in group and group[first] == group.get(copy) for first, copy in pairs]
    assert np.mean(hits) >= 0.95
    per = len(CHANGES) + 1
    joined = [(a, b) for a in group for b in group if a < b and group[a] == group[b]]
    assert all(a // per == b // per for a, b in joined)
    assert found.by_pixels
    assert set(found.table["how"]) == {"near"}


def test_light_and_dark_things_of_one_shape_are_two(photographs_cut: list[Image.Image]) -> None:
    image = photographs_cut[0]
    cache = archive(2, n_classes=2, images=False)
    cache.images = {0: png(image), 1: png(image.point([int(v * 0.8) for v in range(256)] * 3))}
    copies, there = small_copies(cache, np.arange(2))
    assert there.all()
    assert np.abs(copies[0].astype(float) - copies[1]).mean() > MOST_DIFFERENCE
    assert pixel_similarity(copies, np.array([0]), np.array([1]), 0.9)[0] == 0


def test_flat_pictures_are_nobodys_twin() -> None:
    copies = np.stack([np.full((32, 32), level, np.uint8) for level in (0, 255, 255)])
    i, j = np.triu_indices(3, 1)
    assert pixel_similarity(copies, i, j, 0.5).tolist() == [0, 0, 0]


def test_candidates_of_a_large_cache_come_from_whitened_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(300, 40)) * np.linspace(5, 0.5, 40) + 30).astype(np.float32)
    X[7] = X[200] + 0.01 * rng.normal(size=40)
    monkeypatch.setattr(duplicates, "_ALL_PAIRS_ROWS", 10)
    monkeypatch.setattr(duplicates, "_BLOCK", 64)
    i, j = duplicates._candidates(X, np.arange(300))
    centred = X - X.mean(0)
    vectors = np.linalg.svd(centred, full_matrices=False)[2]
    white = centred @ vectors.T
    white /= white.std(0)
    white /= np.linalg.norm(white, axis=1, keepdims=True)
    expected = np.argwhere(np.triu(white @ white.T >= duplicates._CANDIDATE_COSINE, 1))
    found = sorted(zip(i.tolist(), j.tolist(), strict=True))
    assert (7, 200) in found
    borderline = np.abs(np.array([white[a] @ white[b] for a, b in found]) - duplicates._CANDIDATE_COSINE) < 1e-3
    assert {tuple(pair) for pair in expected.tolist()} ^ set(found) <= {
        pair for pair, near in zip(found, borderline, strict=True) if near
    }


def test_without_images_embeddings_judge_and_bytes_are_certain() -> None:
    cache = archive(40, images=False)
    cache.embeddings[5] = cache.embeddings[9] * 2
    cache.content_hash[21] = cache.content_hash[2]
    said: list[str] = []
    found = find_duplicates(cache, threshold=0.9999, say=said.append)
    assert [set(lines["key"]) for _, lines in found.table.groupby("group")] == [{"2.png", "21.png"}, {"5.png", "9.png"}]
    assert found.table["how"].tolist() == ["exact", "exact", "near", "near"]
    assert (found.exact, found.near, found.by_pixels) == (1, 1, False)
    assert "look-alikes" in said[0]
    assert len(find_duplicates(archive(40, images=False), threshold=1.0).table) == 0


def test_across_a_split_only_what_both_sides_share_is_kept() -> None:
    cache = archive(12, images=False)
    for copy, original in ((4, 0), (8, 0), (5, 1), (6, 2)):
        cache.content_hash[copy] = cache.content_hash[original]
    split = np.array(["train"] * 12, dtype=object)
    split[[4, 7]], split[6], split[2] = "Test", "val", ""  # of rows 2 and 6 only one has a split
    cache.columns = {"split": split, "group": np.array(["a"] * 6 + ["b"] * 6, dtype=object)}
    found = find_duplicates(cache, use_pixels=False, threshold=1.0)
    assert found.leak is None
    across = duplicates.duplicates_across(found, cache, "split")
    assert sorted(across.rows.tolist()) == [0, 4, 8]
    assert across.table["group"].tolist() == [1, 1, 1]
    assert dict(zip(across.rows.tolist(), across.table["split"], strict=True)) == {0: "train", 4: "test", 8: "train"}
    assert across.exact == 2
    assert across.leak is not None
    assert across.leak.startswith("1 of 2 test images (50.00%)")
    assert "0 of 1 val images" in across.leak
    by_group = duplicates.duplicates_across(found, cache, "group")
    assert sorted(set(by_group.rows.tolist())) == [0, 2, 4, 6, 8]
    assert by_group.table["group"].tolist() == [1, 1, 1, 2, 2]
    cache.columns["age"] = np.array([np.nan, 1, 2, 3, 4, 5, np.nan, *[7] * 5])
    assert sorted(duplicates.duplicates_across(found, cache, "age").rows.tolist()) == [0, 1, 4, 5, 8]
    with pytest.raises(AnalysisError, match="no column 'splits': did you mean split"):
        duplicates.duplicates_across(found, cache, "splits")
