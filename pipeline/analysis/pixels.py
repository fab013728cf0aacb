"""Whether two images show the same picture: small grey copies are aligned and correlated.

Embeddings alone do not suffice: among objects photographed alike, the nearest other object is nearer than a
recompressed copy.

Axes: N rows, P pairs, V values of a grid of G × G.
"""

from __future__ import annotations

import functools
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.system import processor_count
from pipeline.decoding.errors import DecodeError
from pipeline.decoding.image import DecodePolicy, decode_image
from pipeline.sources.reopen import image_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.cache import Cache

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]

SIDE = 32
"""Grid of the small copies: enough to distinguish garments, 1 kB per row."""
_SMALLEST_BOX = 0.88
"""Largest crop: 12 % of a side."""
_FINE, _COARSE = (1.0, 3.0), (0.7, 2.1)
"""Standard deviations, in cells of the grid, of the two blurs whose difference is correlated."""
_TANGENT_LEAST = 0.93
_COARSE_LEAST = 0.97
MOST_DIFFERENCE = 3.8
"""Grey levels of 255 (root mean square, slightly blurred) that a copy may differ: light and dark objects correlate."""
_FLAT = 1.0
"""Contrast, in grey levels, below which an image is too uniform to be compared."""
_CHUNK = 4096


def small_copies(cache: Cache, rows: Ints) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Read the images of rows and shrink them.

    Parameters
    ----------
    cache : Cache
        The cache whose images are read.
    rows : (n,) int64
        Rows of the cache.

    Returns
    -------
    copies : (n, 32, 32) uint8
        Grey, the whole image squeezed into a square.
    there : (n,) bool
        False where the image is missing or no longer readable.
    """
    copies = np.zeros((len(rows), SIDE, SIDE), np.uint8)
    there = np.zeros(len(rows), np.bool_)

    def fill(start: int) -> None:
        for n in range(start, min(start + 256, len(rows))):
            copy = _small_copy(image_bytes(cache, int(rows[n])))
            if copy is not None:
                copies[n], there[n] = copy, True

    # Warning filters belong to the process, and decoding sets and resets them: threads would interfere.
    with warnings.catch_warnings(), ThreadPoolExecutor(processor_count()) as threads:
        warnings.simplefilter("ignore")
        list(threads.map(fill, range(0, len(rows), 256)))
    return copies, there


def _small_copy(data: bytes | None) -> NDArray[np.uint8] | None:
    from PIL import Image

    if data is None:
        return None
    try:
        image = decode_image(data, DecodePolicy(), thumbnail=SIDE)
    except DecodeError:
        return None
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(grey, dtype=np.uint8)


def pixel_similarity(copies: NDArray[np.uint8], i: Ints, j: Ints, least: float) -> Floats:
    """Correlate pairs of pictures at their best alignment.

    Parameters
    ----------
    copies : (N, 32, 32) uint8
        From `small_copies`.
    i, j : (P,) int64
        The pairs.
    least : float
        Similarity of interest: pairs that a coarse step puts well below it are not refined.

    Returns
    -------
    (P,) float32
        Correlation in [-1, 1] of the two pictures, blurred and freed of slow shading, with one of them cropped by up to
        12 % where that fits best; 0 where a coarse step was enough, where grey levels differ by more than
        `MOST_DIFFERENCE`, or where a picture has no contrast.

    Notes
    -----
    Three steps, each on the remaining pairs. The first needs no resampling: how much of one picture lies
    in the span of the other and of its derivatives by shift and size (tangent distance: Simard, LeCun and Denker,
    "Efficient pattern recognition using a new transformation distance", NIPS 1992). It also decides which of the two
    would be the crop. The second and third follow the alignment by Gauss-Newton steps on the correlation (Evangelidis
    and Psarakis, "Parametric image alignment using enhanced correlation coefficient maximization", IEEE TPAMI 30,
    2008), on 16 × 16 and on 32 × 32 cells. Pictures are resampled first and filtered then: the other way round a crop
    would be compared at another sharpness.
    """
    half = copies.reshape(len(copies), SIDE // 2, 2, SIDE // 2, 2).mean((2, 4), dtype=np.float32)
    tangents = _tangents(half)
    out = np.zeros(len(i), np.float32)

    def compare(start: int) -> None:
        part = slice(start, start + _CHUNK)
        alive, outer, crop, boxes = _screen_pairs(*tangents, i[part], j[part])
        rough, boxes = _align(half[outer], half[crop], boxes, _COARSE, 2)
        good = rough >= min(_COARSE_LEAST, least)
        alive, outer, crop, boxes = alive[good], outer[good], crop[good], boxes[good]
        whole, cropped = copies[outer].astype(np.float32), copies[crop].astype(np.float32)
        score, boxes = _align(whole, cropped, boxes, _FINE, 3)
        score[_difference(whole, cropped, boxes) > MOST_DIFFERENCE] = 0
        out[start + alive] = score

    with ThreadPoolExecutor(processor_count()) as threads:
        list(threads.map(compare, range(0, len(i), _CHUNK)))
    return out


def _screen_pairs(
    bases: Floats, triangles: Floats, pictures: Floats, i: Ints, j: Ints
) -> tuple[Ints, Ints, Ints, Floats]:
    """Return the pairs worth aligning, which row is the whole picture and which the crop, and a first box."""
    part = np.matmul(bases[i], pictures[j][:, :, None])[:, :, 0]
    alive = np.flatnonzero(np.einsum("pk,pk->p", part, part) >= _TANGENT_LEAST**2)
    # The picture itself, its slopes and its growth, in the mix that comes nearest to the other picture.
    mix = np.linalg.solve(triangles[i[alive]], part[alive][:, :, None])[:, :, 0]
    alive, mix = alive[mix[:, 0] > 0], mix[mix[:, 0] > 0]
    moves = (mix[:, 1:] / mix[:, :1]).clip(-0.1, 0.1)
    size = 1 + moves[:, 2]
    low = moves[:, :2] - moves[:, 2:] / 2
    swap = size > 1
    low[swap] = -low[swap] / size[swap, None]
    size[swap] = 1 / size[swap]
    boxes = _inside(np.concatenate([low, size[:, None]], axis=1).astype(np.float32))
    return alive, np.where(swap, j[alive], i[alive]), np.where(swap, i[alive], j[alive]), boxes


def _difference(whole: Floats, crop: Floats, boxes: Floats) -> Floats:
    """Return the root of the mean squared difference in grey levels, after a slight blur."""
    blur = _blur(SIDE, _FINE[0])
    apart = blur @ (_seen(whole, boxes) - crop) @ blur.T
    return np.asarray(np.sqrt(np.einsum("pyx,pyx->p", apart, apart)) / SIDE)


def _tangents(grids: Floats) -> tuple[Floats, Floats, Floats]:
    """Return for each picture an orthonormal basis (4, V) of it and its derivatives, the triangle, and itself (V,)."""
    side = grids.shape[1]
    bases = np.empty((len(grids), 4, side * side), np.float32)
    triangles = np.empty((len(grids), 4, 4), np.float32)
    pictures = np.empty((len(grids), side * side), np.float32)
    whole = np.tile(np.array([0, 0, 1], np.float32), (_CHUNK, 1))
    for start in range(0, len(grids), _CHUNK):
        part = slice(start, start + _CHUNK)
        picture = _filtered(grids[part], whole[: len(grids[part])], _COARSE)
        spanning = np.concatenate([picture[:, None], _derivatives(picture.reshape(-1, side, side))], axis=1)
        # A picture without contrast spans nothing: a little of its own keeps the triangle regular.
        q, r = np.linalg.qr(spanning.transpose(0, 2, 1))
        triangles[part] = r + 1e-6 * np.eye(4, dtype=np.float32)
        bases[part], pictures[part] = q.transpose(0, 2, 1), picture
    return bases, triangles, pictures


def _derivatives(picture: Floats) -> Floats:
    """Return how each picture (P, G, G) changes with a shift right, a shift down and growth, (P, 3, V)."""
    side = picture.shape[1]
    down, right = np.gradient(picture, axis=(1, 2))
    right, down = right * side, down * side  # per side of the image
    middle = ((np.arange(side) + 0.5) / side - 0.5).astype(np.float32)
    growth = right * middle + down * middle[:, None]
    out = np.stack([right, down, growth], axis=1).reshape(len(picture), 3, side * side)
    return np.asarray(out - out.mean(axis=2, keepdims=True))


def _align(outer: Floats, crop: Floats, boxes: Floats, blurs: tuple[float, float], steps: int) -> tuple[Floats, Floats]:
    """Move and resize the box of ``outer`` (x, y, size in units of the side) to look like ``crop``; return the best."""
    side = outer.shape[1]
    wanted = _filtered(crop, np.tile(np.array([0, 0, 1], np.float32), (len(crop), 1)), blurs)
    best, best_boxes = np.full(len(outer), -np.inf, np.float32), boxes.copy()
    for step in range(steps + 1):
        seen = _filtered(outer, boxes, blurs)
        score = np.einsum("pv,pv->p", seen, wanted)
        up = score > best
        best[up], best_boxes[up] = score[up], boxes[up]
        if step == steps:
            return best, best_boxes
        slopes = _derivatives(seen.reshape(-1, side, side))
        slopes -= np.matmul(slopes, seen[:, :, None]) * seen[:, None, :]
        rest = wanted - score[:, None] * seen
        normal = np.matmul(slopes, slopes.transpose(0, 2, 1)) + np.float32(1e-3) * np.eye(3, dtype=np.float32)
        move = np.linalg.solve(normal, np.matmul(slopes, rest[:, :, None]))[:, :, 0].clip(-0.05, 0.05)
        size = boxes[:, 2:] * (1 + move[:, 2:])
        # Growth is about the middle of the box.
        low = boxes[:, :2] + boxes[:, 2:] * move[:, :2] + (boxes[:, 2:] - size) / 2
        boxes = _inside(np.concatenate([low, size], axis=1))
    raise AssertionError


def _inside(boxes: Floats) -> Floats:
    """Keep boxes within the image."""
    size = boxes[:, 2:].clip(_SMALLEST_BOX, 1)
    return np.concatenate([boxes[:, :2].clip(0, 1 - size), size], axis=1)


def _filtered(grids: Floats, boxes: Floats, blurs: tuple[float, float]) -> Floats:
    """Return (P, V): the box of each picture resampled to the whole grid, blurred, less blurred more, of length 1."""
    side = grids.shape[1]
    narrow, wide = (_blur(side, sigma) for sigma in blurs)
    seen = _seen(grids, boxes)
    out = (narrow @ seen @ narrow.T - wide @ seen @ wide.T).reshape(len(grids), side * side)
    out -= out.mean(axis=1, keepdims=True)
    length = np.linalg.norm(out, axis=1, keepdims=True)
    return np.where(length > _FLAT * side, out / np.maximum(length, 1e-6), np.float32(0))


def _seen(grids: Floats, boxes: Floats) -> Floats:
    """Return the box of each picture at the size of the whole, (P, G, G)."""
    across, along = (_resampling(boxes[:, axis], boxes[:, 2], grids.shape[1]) for axis in (0, 1))
    return np.asarray(np.matmul(np.matmul(along, grids), across.transpose(0, 2, 1)))


def _resampling(low: Floats, size: Floats, side: int) -> Floats:
    """Return (P, G, G) matrices that read a row of cells at the cells of a box, linearly."""
    centres = (np.arange(side, dtype=np.float32) + 0.5) / side
    at = ((low[:, None] + centres * size[:, None]) * side - np.float32(0.5)).clip(0, side - 1)
    left = np.minimum(at.astype(np.int64), side - 2)
    share = (at - left).astype(np.float32)
    out = np.zeros((len(low), side, side), np.float32)
    pair, cell = np.arange(len(low))[:, None], np.arange(side)[None]
    out[pair, cell, left], out[pair, cell, left + 1] = 1 - share, share
    return out


@functools.cache
def _blur(side: int, sigma: float) -> Floats:
    """Return the (G, G) matrix of a Gaussian blur, reflected at the border."""
    from scipy.ndimage import gaussian_filter1d

    return np.asarray(gaussian_filter1d(np.eye(side), sigma, axis=0, mode="reflect"), dtype=np.float32)
