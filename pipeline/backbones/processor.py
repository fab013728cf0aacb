"""Image processors of other libraries as plain preprocessing, proven on images against the processor itself.

A processor's settings suggest what it does, and its class may do more. So the settings give candidates, and the first
candidate whose output is the processor's own is taken. A processor that none of them matches is refused.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pipeline.decoding.preprocess import Preprocess
from pipeline.errors import BackboneError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Numbers of Pillow's filters, as processors store them."""
SAME_PIXELS = 0.1
"""Largest difference, in levels of 255, that arithmetic leaves where both resize by Pillow."""
NEAR_PIXELS, NEAR_ON_AVERAGE = 2.5, 0.5
"""The same where the processor resizes by torchvision: a rounding more or less."""
BELOW_384 = 384
"""ConvNeXt's processors crop below this size, and squash from it on."""
LEVIT = 256 / 224

_Triple = tuple[float, float, float]


def preprocess_of(processor: Any, what: str) -> Preprocess:
    """Return the preprocessing that gives the input which an image processor of transformers gives.

    Parameters
    ----------
    processor : transformers image processor
        With Pillow as its backend where it has one.
    what : str
        The backbone, for the error.

    Raises
    ------
    BackboneError
        See `proven`.
    """
    by_pillow = getattr(processor, "backend", "pil") == "pil"
    return proven(
        list(_candidates(processor.to_dict())),
        functools.partial(_output, processor),
        f"{what}: {type(processor).__name__.removesuffix('Pil')}",
        by_pillow=by_pillow,
    )


def proven(
    candidates: list[Preprocess],
    own: Callable[[Image.Image], NDArray[np.float32]],
    what: str,
    *,
    by_pillow: bool = True,
) -> Preprocess:
    """Return the first candidate that gives a library's own input, on images of odd sizes.

    Parameters
    ----------
    candidates : list of Preprocess
    own : callable
        From an RGB image to the network's input (3, H, W), by the library.
    what : str
        Backbone and processor, for the error.
    by_pillow : bool
        Whether the library resizes by Pillow, so that every pixel must be the same.

    Raises
    ------
    BackboneError
        None does, or the library does not give one picture (3, H, W) for an image.
    """
    least = (SAME_PIXELS, SAME_PIXELS) if by_pillow else (NEAR_PIXELS, NEAR_ON_AVERAGE)
    try:
        height, width = own(_probe(96, 64)).shape[1:]
        probes = [_probe(*size) for size in _odd_sizes(width, height)]
        wanted = [own(probe) for probe in probes]
    except Exception as error:  # processors of other tasks raise anything
        raise BackboneError(
            f"{what}: expected one picture for each image, got something else ({first_line(error)}): choose another "
            "backbone"
        ) from None
    for candidate in candidates:
        if candidate.crop == (height, width) and _agrees(candidate, probes, wanted, *least):
            return candidate
    raise BackboneError(
        f"{what} prepares images in a way that resizing, cropping and normalising do not give: choose another backbone"
    )


def _output(processor: Any, image: Image.Image) -> NDArray[np.float32]:
    """Return what a processor makes of one image: (3, H, W)."""
    values = processor(images=image, return_tensors="np")["pixel_values"]
    array = np.asarray(values, dtype=np.float32)
    if array.ndim != 4 or array.shape[:2] != (1, 3):
        raise ValueError(f"pixel_values of shape {array.shape}")
    return np.asarray(array[0])


def _odd_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Return widths and heights that tell geometries apart: wide, high, nearly square, and smaller than the input."""
    return [
        (2 * width + 37, height + 22),
        (width + 15, 2 * height + 8),
        (width + 21, height + 22),
        (width // 2 + 5, height // 2 + 12),
    ]


def _probe(width: int, height: int) -> Image.Image:
    """Return an image of patches of several sizes: edges, and nothing that repeats."""
    rng = np.random.default_rng(width * 4096 + height)
    pixels = np.zeros((height, width, 3))
    for grain in (2, 7, 23):
        patches = rng.normal(size=(-(-height // grain), -(-width // grain), 3))
        pixels += patches.repeat(grain, axis=0).repeat(grain, axis=1)[:height, :width]
    return Image.fromarray((128 + 40 * pixels).clip(0, 255).astype(np.uint8))


def _agrees(
    candidate: Preprocess,
    probes: list[Image.Image],
    wanted: list[NDArray[np.float32]],
    most: float,
    on_average: float,
) -> bool:
    mean, std = (np.array(values)[:, None, None] for values in (candidate.mean, candidate.std))
    for probe, expected in zip(probes, wanted, strict=True):
        found = candidate.apply(probe).transpose(2, 0, 1) / 255.0
        levels = np.abs(expected * std + mean - found) * 255.0
        if levels.max() > most or levels.mean() > on_average:
            return False
    return True


def _candidates(settings: dict[str, Any]) -> Iterator[Preprocess]:
    """Yield what a processor's settings may mean."""
    if not settings.get("do_resize", True):
        return
    size = {name: int(value) for name, value in dict(settings.get("size") or {}).items() if value}
    crop = {name: int(value) for name, value in dict(settings.get("crop_size") or {}).items() if value}
    for resize, own_crop in _resizes(size, float(settings.get("crop_pct") or 1.0)):
        if settings.get("do_center_crop") and {"height", "width"} <= crop.keys():
            own_crop = crop["height"], crop["width"]
        for mean, std in _normalisations(settings):
            yield Preprocess(
                resize=resize,
                crop=own_crop,
                interpolation=FILTERS.get(settings.get("resample", 2), "bilinear"),
                mean=mean,
                std=std,
                rounding="down",
            )


def _resizes(size: dict[str, int], crop_pct: float) -> Iterator[tuple[tuple[int, ...], tuple[int, int]]]:
    """Yield the resize, and the crop where the settings name no other."""
    if size.keys() == {"height", "width"}:
        yield (size["height"], size["width"]), (size["height"], size["width"])
    elif size.keys() == {"shortest_edge"}:
        edge = size["shortest_edge"]
        yield (edge,), (edge, edge)
        yield (edge, edge), (edge, edge)
        yield (int(edge / crop_pct),), (edge, edge)
        yield (int(LEVIT * edge),), (edge, edge)


def _normalisations(settings: dict[str, Any]) -> Iterator[tuple[_Triple, _Triple]]:
    """Yield mean and standard deviation for values of 0…1, of processors that scale by any factor."""
    factor = (
        round(float(settings.get("rescale_factor") or 1 / 255) * 255, 12) if settings.get("do_rescale", True) else 255.0
    )
    normalises = settings.get("do_normalize", True)
    mean = _triple(settings.get("image_mean"), 0.0) if normalises else (0.0, 0.0, 0.0)
    std = _triple(settings.get("image_std"), 1.0) if normalises else (1.0, 1.0, 1.0)
    offset = 1.0 if settings.get("rescale_offset") else 0.0
    yield _scaled(mean, 1 / factor, offset), _scaled(std, 1 / factor)
    if settings.get("include_top"):  # EfficientNet's divides by the deviation a second time
        yield _scaled(mean, 1 / factor, offset), _scaled((std[0] ** 2, std[1] ** 2, std[2] ** 2), 1 / factor)


def _scaled(values: _Triple, by: float, offset: float = 0.0) -> _Triple:
    one, two, three = ((value + offset) * by for value in values)
    return one, two, three


def _triple(value: Any, default: float) -> _Triple:
    values = (default if value is None else value,) * 3 if not isinstance(value, (list, tuple)) else tuple(value)
    one, two, three = (float(each) for each in values)
    return one, two, three
