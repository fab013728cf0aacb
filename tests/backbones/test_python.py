"""``python:MODULE:CALLABLE``: a user's own network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from pipeline.backbones import load_backbone
from pipeline.decoding.preprocess import Preprocess
from pipeline.embedding.from_spec import backbone_of_spec
from pipeline.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Iterator


ROOT = Path(__file__).parent.parent.parent
NETWORK = """
import torch
from torch import nn
from {parts} import SCALE

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x):
        return SCALE * self.linear(x.mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Net(), {{"resize": 20, "crop": 16, "interpolation": "bilinear", "mean": 0.5, "std": 0.5}}

def as_torchvision():
    from torchvision.models import ResNet18_Weights
    return Net(), ResNet18_Weights.IMAGENET1K_V1.transforms()

def without(): return Net()
def other(): return Net(), "resize"
def fewer(): return Net(), {{"resize": 20}}
def crooked(): return Net(), {{"resize": 20, "crop": 16.5, "interpolation": "bilinear", "mean": 0.5, "std": 0.5}}
def broken(): raise ValueError("no such file")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A network of two modules in a folder on the path."""
    before = set(sys.modules)
    (tmp_path / "own_net.py").write_text(NETWORK.format(parts="own_parts"))
    (tmp_path / "own_parts.py").write_text("SCALE = 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    forget(before)


def forget(before: set[str]) -> None:
    for name in [name for name in sys.modules if name not in before and name.startswith("own_")]:
        del sys.modules[name]


def test_a_users_network_is_embedded_as_it_is(own: Path) -> None:
    backbone = load_backbone("python:own_net:build")
    assert backbone.preprocess == Preprocess((20,), (16, 16), "bilinear", (0.5,) * 3, (0.5,) * 3)
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    module = sys.modules["own_net"].build()[0]
    with torch.inference_mode():
        torch.testing.assert_close(backbone.network(images)[0], module((images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5))
    spec = backbone.to_spec()
    assert backbone_of_spec(spec).to_spec() == spec
    assert load_backbone("python:own_net:as_torchvision").preprocess.resize == (256,)


@pytest.mark.parametrize("file", ["own_net.py", "own_parts.py"])
def test_a_change_of_the_code_is_another_network(own: Path, file: str) -> None:
    before = set(sys.modules) - {"own_net", "own_parts"}
    first = load_backbone("python:own_net:build").weights.sha256
    assert load_backbone("python:own_net:build").weights.sha256 == first
    (own / file).write_text((own / file).read_text() + "\n# changed\n")
    forget(before)
    assert load_backbone("python:own_net:build").weights.sha256 != first


def test_code_beside_it_that_it_does_not_import_is_no_part_of_it(own: Path) -> None:
    first = load_backbone("python:own_net:build").weights.sha256
    (own / "own_other.py").write_text("X = 1\n")
    __import__("own_other")
    assert load_backbone("python:own_net:build").weights.sha256 == first


def test_weights_of_a_file_replace_its_own(own: Path) -> None:
    first = load_backbone("python:own_net:build")
    save_file({"linear.weight": torch.ones(4, 3), "linear.bias": torch.zeros(4)}, own / "w.safetensors")
    second = load_backbone("python:own_net:build", str(own / "w.safetensors"))
    assert second.weights.name == "file"
    assert second.weights.sha256 != first.weights.sha256


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("python:own_net", "expected python:MODULE:CALLABLE"),
        ("python:own_nothing:build", "put its folder on PYTHONPATH"),
        ("python:own_net:biuld", "did you mean build"),
        ("python:own_net:without", "expected .* to return a network and its preprocessing, found Net"),
        ("python:own_net:other", "as a dict or torchvision's transforms, found str"),
        ("python:own_net:fewer", "expected a preprocessing with resize, crop, interpolation, mean, std, found resize"),
        ("python:own_net:crooked", "expected resize and crop in whole pixels"),
        ("python:own_net:broken", r"failed \(no such file\)"),
    ],
)
@pytest.mark.usefixtures("own")
def test_what_is_no_network_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message) as caught:
        load_backbone(name)
    assert "\n" not in str(caught.value)


def test_the_example_of_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    code = page.split("This is `my_network.py`:\n\n```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line]) <= 10
    (tmp_path / "own_example.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    backbone = load_backbone("python:own_example:build")
    assert backbone.layers[0].width == 64
    del sys.modules["own_example"]
