"""Small real images, made once per run."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Tests beside each other use a processor each. The libraries read this when they are loaded, so it stands above them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest
from PIL import Image

from tests.browser import started

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.training.probe import Probe


# A shell ignores signals for what it starts in the background, and children inherit that; tests send these signals.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

collect_ignore_glob = ["*/sitecustomize.py"]  # for other processes; two of one name cannot be collected

# Examples take as long as a busy machine needs; how long says nothing about the product.
hypothesis.settings.register_profile(
    "busy",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    # A checkout that cannot be written keeps no examples.
    **({} if os.access(Path(__file__).parent.parent, os.W_OK) else {"database": None}),
)
hypothesis.settings.load_profile("busy")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Return headless Chromium."""
    with started() as found:
        yield found


@pytest.fixture(scope="session")
def photographs() -> list[Image.Image]:
    """Return scikit-learn's two photographs, 427 × 640."""
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(image) for image in load_sample_images().images]


@pytest.fixture(scope="session")
def crops(photographs: list[Image.Image]) -> list[Image.Image]:
    """Return 24 crops of the photographs, of many sizes and shapes."""
    rng = np.random.default_rng(7)
    found = []
    for i in range(24):
        photo = photographs[i % 2]
        width, height = (int(n) for n in rng.integers(40, 400, 2))
        left, top = int(rng.integers(0, photo.width - width)), int(rng.integers(0, photo.height - height))
        found.append(photo.crop((left, top, left + width, top + height)))
    return found


@pytest.fixture(scope="session")
def image_folder(crops: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three classes of eight images each, JPEG and PNG."""
    root = tmp_path_factory.mktemp("images")
    for i, crop in enumerate(crops):
        folder = root / ("ant", "bee", "cat")[i % 3]
        folder.mkdir(exist_ok=True)
        crop.save(folder / (f"{i:02d}.jpg" if i % 2 else f"{i:02d}.png"))
    return root


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Probe:
    """Return images, cache and run of a head under a tiny network."""
    from tests.training.probe import make_probe

    return make_probe(tmp_path_factory.mktemp("finetune"))
