"""Time one peer on a folder of images and print its images/s: what `bench_extract.py` starts, once per repeat.

    PYTHON scripts/bench_peers.py thingsvision FOLDER torchvision/resnet50
    PYTHON scripts/bench_peers.py img2vec-pytorch FOLDER torchvision/resnet50
    PYTHON scripts/bench_peers.py embetter FOLDER torchvision/resnet50

A program of its own, so that a peer can be measured under its own interpreter, with the versions of its dependencies
that it asks for. Each runs as its README shows, with a batch of 32 where it takes batches. Weights are random, since
only the speed is looked at: nothing is downloaded. Building the network is counted for none of the contenders' loops.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCH = 32


def thingsvision(folder: Path, model: str) -> float:
    """Return seconds of thingsvision's extraction."""
    from thingsvision import get_extractor
    from thingsvision.utils.data import DataLoader, ImageDataset

    extractor: Any = get_extractor(model, source="torchvision", device="cpu", pretrained=False)
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        data = ImageDataset(root=str(folder), out_path=out, backend="pt", transforms=extractor.get_transformations())
        batches = DataLoader(dataset=data, batch_size=BATCH, backend="pt")
        extractor.extract_features(batches=batches, module_name="avgpool", flatten_acts=True, output_type="ndarray")
        return time.perf_counter() - started


def img2vec(folder: Path, model: str) -> float:
    """Return seconds of img2vec-pytorch, in lists of images; its constructor would download, so that is taken out."""
    import img2vec_pytorch.img_to_vec as library
    from PIL import Image

    build = getattr(library, model)
    setattr(library, model, lambda weights: build(weights=None))
    encoder = library.Img2Vec(cuda=False, model=model, layer_output_size=2048 if model == "resnet50" else 512)
    files = sorted(folder.glob("*.jpg"))
    started = time.perf_counter()
    for first in range(0, len(files), BATCH):
        encoder.get_vec([Image.open(file).convert("RGB") for file in files[first : first + BATCH]])
    return time.perf_counter() - started


def embetter(folder: Path, model: str) -> float:
    """Return seconds of embetter's loader and timm encoder in a scikit-learn pipeline, as its README has it."""
    import timm
    from embetter.vision import ImageLoader, TimmEncoder
    from sklearn.pipeline import make_pipeline

    create = timm.create_model
    timm.create_model = lambda *args, **options: create(*args, **{**options, "pretrained": False})
    encoder = TimmEncoder(model)
    encoder.model.eval()
    pipeline = make_pipeline(ImageLoader(), encoder)
    files = [str(file) for file in sorted(folder.glob("*.jpg"))]
    started = time.perf_counter()
    pipeline.fit_transform(files)
    return time.perf_counter() - started


PEERS = {"thingsvision": thingsvision, "img2vec-pytorch": img2vec, "embetter": embetter}


def main() -> None:
    import importlib.metadata

    peer, folder, backbone = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    try:
        version = importlib.metadata.version(peer)
    except importlib.metadata.PackageNotFoundError:
        return  # not installed: no line
    count = len(list(folder.glob("*.jpg")))
    seconds = PEERS[peer](folder, backbone.rpartition("/")[2])
    torch = importlib.metadata.version("torch")
    print(f"\nimages/s {count / seconds:.3f} {peer} {version} (torch {torch})")


if __name__ == "__main__":
    main()
