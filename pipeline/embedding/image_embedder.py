"""Images → embeddings as a scikit-learn transformer, with the numbers of ``pipeline extract`` and from its cache."""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from PIL import Image
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from pipeline.backbones import DEFAULT_BACKBONE, load_backbone
from pipeline.cache import open_cache
from pipeline.core.items import HASH_BYTES, Status
from pipeline.core.spec import PENULTIMATE
from pipeline.decoding.errors import DecodeError
from pipeline.decoding.image import DecodePolicy, upright_rgb
from pipeline.decoding.resample import RESAMPLER
from pipeline.embedding.choose import CHECK_IMAGES, engine_for
from pipeline.embedding.embedder import Embedder, reasons_of
from pipeline.embedding.pool import worker_count
from pipeline.embedding.settings import RunSettings
from pipeline.errors import PipelineError
from pipeline.sources.listed import ListedSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.cache import Cache


class ImageEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Embed images with a frozen pretrained network.

    Parameters
    ----------
    backbone : str, optional
        See ``pipeline backbones``; by default the cache's, or without a cache the bundled EfficientNet-Lite0.
    weights : str, optional
        As for ``pipeline extract --weights``; also the weights file of a cache that was made with one.
    layer : str
        ``penultimate``, or ``NODE[:POOLING]``.
    cache : path, optional
        A cache that ``pipeline extract`` made. Images it holds are looked up, not computed, and the others are computed
        with its weights, preprocessing and precision. A file at the path of the cache, with the same size and time,
        is found by its key; any other image by its content. The cache is only read.
    precision : str, optional
        ``float32``, ``bfloat16`` or ``float16``; by default the cache's, or float32. There is no ``auto``: its
        choice could differ between two calls.
    engine, device, batch_size, workers
        As for ``pipeline extract``; 0 chooses by the machine.
    on_error : {"raise", "nan"}
        The result for an image that cannot be read: an error that names it, or a row of NaN.

    Notes
    -----
    ``fit`` learns nothing, so an embedder as the first step of a ``Pipeline`` leaks nothing from test rows. An embedder
    holds only its parameters, so it can be cloned and pickled. The network is opened when it is
    first needed, is checked against float32 PyTorch on the first images, and is kept open for the next call of any
    embedder in this process with the same parameters.

    Rows from a cache and rows that are computed are the same, bit for bit, on the machine and engine that made it.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> make_pipeline(ImageEmbedder(cache="photos.h5"), LogisticRegression(C=0.01))  # doctest: +ELLIPSIS
    Pipeline(...)
    """

    def __init__(
        self,
        backbone: str | None = None,
        *,
        weights: str | None = None,
        layer: str = PENULTIMATE,
        cache: str | os.PathLike[str] | None = None,
        precision: str | None = None,
        engine: str = "auto",
        device: str = "auto",
        batch_size: int = 0,
        workers: int = 0,
        on_error: Literal["raise", "nan"] = "raise",
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.layer = layer
        self.cache = cache
        self.precision = precision
        self.engine = engine
        self.device = device
        self.batch_size = batch_size
        self.workers = workers
        self.on_error = on_error

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the parameters; there is nothing to learn.

        Raises
        ------
        PipelineError
            The parameters contradict each other or the cache.
        """
        self._open_cache()
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Embed images.

        Parameters
        ----------
        X : sequence of n images, or a table with one column of them
            Each a path (str or PathLike), a ``PIL.Image.Image``, or a uint8 array (H, W), (H, W, 3) or (H, W, 4).

        Returns
        -------
        (n, D) float32

        Raises
        ------
        PipelineError
            An image cannot be read (unless ``on_error="nan"``), or the network is not available.
        """
        cache = self._open_cache()
        images = _listed(X)
        paths = {i: os.fsencode(image) for i, image in enumerate(images) if isinstance(image, (str, os.PathLike))}
        found = {} if cache is None else _rows_of(cache, paths)
        missing = [i for i in range(len(images)) if i not in found]
        out = np.full((len(images), self._n_features_out), np.nan, dtype=np.float32)
        if found and cache is not None:
            positions = np.fromiter(found.keys(), dtype=np.int64)
            out[positions] = cache.layers[self.layer][np.fromiter(found.values(), dtype=np.int64)]
        failed: dict[int, str] = {}
        for part, compute in (
            ([i for i in missing if i in paths], self._embed_paths),
            ([i for i in missing if i not in paths], self._embed_images),
        ):
            if part:
                for position, result in compute([images[i] for i in part], cache):
                    if isinstance(result, str):
                        failed[part[position]] = result
                    else:
                        out[part[position]] = result
        if failed and self.on_error == "raise":
            first = min(failed)
            name = f"image {first}" if first not in paths else os.fsdecode(paths[first])
            more = f"; {len(failed) - 1} more fail" if len(failed) > 1 else ""
            raise PipelineError(
                f"cannot embed {name}: {failed[first]}{more}: leave it out, or pass on_error='nan' for rows of NaN"
            )
        return out

    @property
    def _n_features_out(self) -> int:
        """Width D; scikit-learn names the columns by it."""
        cache = self._open_cache()
        if cache is not None:
            return int(cache.layers[self.layer].shape[1])
        backbone = self._network().backbone
        return next(layer.width for layer in backbone.layers if layer.name == _full_name(self.layer))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags

    def _open_cache(self) -> Cache | None:
        if self.on_error not in ("raise", "nan"):
            raise PipelineError(f"expected on_error 'raise' or 'nan', found {self.on_error!r}: choose one of them")
        if self.cache is None:
            return None
        cache = open_cache(self.cache)
        for name in ("backbone", "precision"):
            asked = getattr(self, name)
            if asked is not None and asked != cache.spec[name]:
                raise PipelineError(
                    f"expected the {name} of {cache.path}, {cache.spec[name]}, found {name}={asked!r}: leave it out, "
                    "or use another cache"
                )
        cache.layer(self.layer)  # refuses a missing layer
        return cache

    def _settings(self, cache: Cache | None) -> RunSettings:
        settings = RunSettings(self.engine, self.device, self.precision or "float32", self.batch_size, self.workers)
        return settings if cache is None else settings.of_cache(cache.spec["precision"])

    def _network(self, cache: Cache | None = None) -> Embedder:
        return _network(self.backbone, self.weights, self.layer, self._settings(cache), cache)

    def _embed_paths(self, paths: list[Any], cache: Cache | None) -> Iterator[tuple[int, NDArray[Any] | str]]:
        """Yield (position, row or reason): read and decoded by worker processes, as ``pipeline extract`` does."""
        network, settings = self._network(cache), self._settings(cache)
        source = ListedSource.of_files([os.path.abspath(os.fsencode(path)) for path in paths])
        settings = replace(settings, workers=min(worker_count(settings), len(paths)))
        with network.lock:
            network.open_for(source, settings=settings)
            for batch, found, reasons in network.embed(source, np.arange(len(paths)), settings=settings):
                for row, reason, embedding in zip(batch.rows.tolist(), reasons, found, strict=True):
                    yield row, reason or embedding

    def _embed_images(self, images: list[Any], cache: Cache | None) -> Iterator[tuple[int, NDArray[Any] | str]]:
        """Yield (position, row or reason) of images in memory, which threads of this process prepare."""
        network, settings = self._network(cache), self._settings(cache)
        preprocess = network.backbone.preprocess

        def prepare(image: Any) -> NDArray[np.uint8] | str:
            if RESAMPLER.repays:
                RESAMPLER.load()
            try:
                return preprocess.apply(upright_rgb(_as_pillow(image), network.decode))
            except DecodeError as error:
                return str(error)

        with network.lock, ThreadPoolExecutor(worker_count(settings)) as threads:
            first = [image for image in threads.map(prepare, images[:CHECK_IMAGES]) if not isinstance(image, str)]
            sample = np.stack(first) if first else np.empty((0, *preprocess.shape), np.uint8)
            engine = network.open_engine(
                lambda: engine_for(sample, network.backbone, settings, say=lambda text: None)[0]
            )
            size, under_way = engine.batch_size, deque[Any]()
            for start in range(0, len(images), size):
                prepared = list(threads.map(prepare, images[start : start + size]))
                batch = np.zeros((size, *preprocess.shape), np.uint8)
                for i, image in enumerate(prepared):
                    if not isinstance(image, str):
                        batch[i] = image
                reasons = [image if isinstance(image, str) else "" for image in prepared]
                under_way.append((start, reasons, engine.submit(batch)))
                while under_way and (len(under_way) >= engine.in_flight or start + size >= len(images)):
                    first_row, reasons, future = under_way.popleft()
                    found = network.features(future.result())[: len(reasons)]
                    for i, (reason, embedding) in enumerate(zip(reasons_of(found, reasons), found, strict=True)):
                        yield first_row + i, reason or embedding


ImageEmbedder.__module__ = "pipeline"  # pickles name the public path, which stays when files move

_kept: tuple[Any, Embedder] | None = None
_keeping = threading.Lock()


def _network(
    backbone: str | None, weights: str | None, layer: str, settings: RunSettings, cache: Cache | None
) -> Embedder:
    """Return the network of these numbers; the last one used stays open, with its threads and device memory."""
    global _kept
    wanted = (backbone, weights, layer, settings, None if cache is None else cache.fingerprint, os.getpid())
    with _keeping:
        if _kept is not None and _kept[0] == wanted:
            return _kept[1]
        if cache is None:
            built = load_backbone(backbone or DEFAULT_BACKBONE, weights, (layer,))
            made = Embedder(built, DecodePolicy(), (_full_name(layer),), "float32", settings)
        else:
            made = Embedder.of_spec(cache.spec, (layer,), settings, weights=weights)
        if _kept is not None and _kept[0][-1] == os.getpid():
            with _kept[1].lock:
                _kept[1].close()
        _kept = wanted, made
        return made


def _listed(X: Any) -> list[Any]:
    """Return the images of any container as a list."""
    if isinstance(X, (str, bytes, os.PathLike, Image.Image)):
        raise PipelineError(f"expected a sequence of images, found one {type(X).__name__}: put it into a list")
    if hasattr(X, "iloc"):  # a table, or one column of it
        X = X.to_numpy()
    if isinstance(X, np.ndarray) and X.dtype.kind in "OUS" and X.ndim == 2:
        if X.shape[1] != 1:
            raise PipelineError(f"expected one column of images, found {X.shape[1]}: choose the one with the paths")
        X = X[:, 0]
    return list(X)


def _as_pillow(image: Any) -> Image.Image:
    """Return an image in memory as Pillow's.

    Raises
    ------
    PipelineError
        Its type is not supported.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        if image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4)):
            return Image.fromarray(image)
        found = f"a uint8 array of shape {image.shape}"
    else:
        found = f"an array of {image.dtype}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
    raise PipelineError(
        f"expected paths, PIL images or uint8 arrays (H, W), (H, W, 3) or (H, W, 4), found {found}: convert it"
    )


def _rows_of(cache: Cache, paths: dict[int, bytes]) -> dict[int, int]:
    """Return the done row of each path's image, by position; images that the cache lacks are left out."""
    found = _by_key(cache, paths)
    others = [i for i in paths if i not in found]
    if others:
        hashes = ListedSource.of_files([paths[i] for i in others]).content_hashes()(np.arange(len(others)))
        wanted = hashes.reshape(-1).view(f"S{HASH_BYTES}")
        known = np.ascontiguousarray(cache.content_hash).reshape(-1).view(f"S{HASH_BYTES}")
        rows = np.flatnonzero(np.isin(known, wanted) & (cache.status == Status.DONE))
        row_of = dict(zip(known[rows].tolist(), rows.tolist(), strict=True))
        found |= {i: row_of[digest] for i, digest in zip(others, wanted.tolist(), strict=True) if digest in row_of}
    return found


def _by_key(cache: Cache, paths: dict[int, bytes]) -> dict[int, int]:
    """Find the paths that are an item's file with unchanged size and time: such a file is unchanged."""
    if "root" not in cache.source or not paths:
        return {}
    root, items = os.fsencode(cache.source["root"]), cache.items
    key_of: dict[int, bytes] = {}
    for i, path in paths.items():
        absolute = os.path.abspath(path)
        key_of[i] = absolute.removeprefix(root.rstrip(b"/") + b"/")
    rows = np.flatnonzero(np.isin(items.keys, np.array(list(key_of.values()))) & (cache.status == Status.DONE))
    row_of = dict(zip((bytes(key) for key in items.keys[rows]), rows.tolist(), strict=True))
    found = {}
    for i, key in key_of.items():
        row = row_of.get(key)
        if row is None:
            continue
        try:
            info = os.stat(paths[i])
        except OSError:
            continue  # reading it raises the error
        if (info.st_size, info.st_mtime_ns) == (int(items.sizes[row]), int(items.mtimes_ns[row])):
            found[i] = row
    return found


def _full_name(layer: str) -> str:
    return layer if layer == PENULTIMATE or ":" in layer else f"{layer}:avg"
