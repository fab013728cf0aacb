"""What a hub answers, through its real client: each case ends in one line, and the next attempt continues."""

from __future__ import annotations

import io
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from timm.models._hub import save_for_hf

from pipeline.backbones import load_backbone
from pipeline.backbones import open_clip as of_open_clip
from pipeline.backbones import transformers as of_transformers
from pipeline.backbones.network import hash_weights
from pipeline.errors import BackboneError
from tests.backbones import tiny
from tests.hub_server import Hub, Repo, hub_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("transformers")
NAME = "lab/encoder"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network, as ``save_pretrained`` writes it."""
    folder = tmp_path_factory.mktemp("vit")
    tiny.save(folder, "vit")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> Iterator[Hub]:
    """A hub with that network."""
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # only newer versions keep one
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    with hub_server(monkeypatch, tmp_path / "home") as hub:
        hub.repos[NAME] = Repo()
        hub.repos[NAME].commit(folder)
        yield hub


def test_a_repository_is_pinned_to_the_commit_of_its_branch(hub: Hub, folder: Path, tmp_path: Path) -> None:
    old = hub.repos[NAME].resolve("main")
    body = of_transformers.build(f"transformers:{NAME}", None)
    assert (body.name, body.weights_name, body.source) == (f"transformers:{NAME}", old, f"transformers:{NAME}@{old}")
    assert hash_weights(body.module) == hash_weights(of_transformers.build(f"transformers:{folder}", None).module)

    other = shutil.copytree(folder, tmp_path / "other")
    model, _ = tiny.build("vit")
    model.layernorm.weight.data += 1
    model.save_pretrained(other)
    new = hub.repos[NAME].commit(other)
    moved = of_transformers.build(f"transformers:{NAME}", None)
    assert moved.weights_name == new != old
    assert hash_weights(moved.module) != hash_weights(body.module)
    again = of_transformers.build(body.source, None)
    assert hash_weights(again.module) == hash_weights(body.module)


def test_a_transfer_that_breaks_off_is_continued(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    hub.breaks_after = 1000
    of_transformers.build(f"transformers:{NAME}", None)
    assert hub.downloads() == ["", "bytes=1000-"]


def test_a_transfer_that_keeps_breaking_leaves_nothing_half_written(hub: Hub, tmp_path: Path) -> None:
    hub.breaks_after, hub.keeps_breaking = 0, True
    with pytest.raises(BackboneError, match=f"the download of {NAME} broke off .*: run again to continue") as caught:
        of_transformers.build(f"transformers:{NAME}", None)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("model.safetensors"))
    hub.breaks_after, hub.keeps_breaking = None, False
    of_transformers.build(f"transformers:{NAME}", None)
    assert not list(tmp_path.rglob("*.incomplete"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lab/nothing", "the hub has no repository lab/nothing, or it is private: .*hf auth login"),
        ("lab/encoder@v9", "lab/encoder has no revision 'v9': name a branch, a tag or a commit"),
        ("lab/closed", "lab/closed is gated: ask for access at .*/lab/closed, then log in"),
        ("lab/text", "lab/text holds no config.json"),
        ("lab/weightless", "cannot use lab/weightless|lab/weightless holds no"),
        ("not a name", "expected ORG/NAME"),
    ],
)
@pytest.mark.parametrize("family", [of_transformers, of_open_clip])
def test_every_refusal_is_one_line(family: Any, name: str, message: str, hub: Hub, folder: Path) -> None:
    hub.repos["lab/closed"] = Repo(gated=True)
    hub.repos["lab/closed"].commit(folder)
    hub.repos["lab/text"] = Repo()
    hub.repos["lab/text"].commit({"README.md": b"# nothing here"})
    hub.repos["lab/weightless"] = Repo()
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix == ".json"}
    hub.repos["lab/weightless"].commit({**files, "open_clip_config.json": files["config.json"]})
    if family is of_open_clip:
        pytest.importorskip("open_clip")
        name, message = f"hf-hub:{name}", message.replace("config.json", "open_clip_config.json")
    prefix = family.PREFIX
    with pytest.raises(BackboneError, match=message) as caught:
        family.build(prefix + name, None)
    assert "\n" not in str(caught.value)


def test_weights_of_the_older_format_are_read_and_nobody_is_asked_to_convert_them(hub: Hub, folder: Path) -> None:
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix == ".json"}
    data = io.BytesIO()
    torch.save(load_file(folder / "model.safetensors"), data)
    hub.repos["lab/older"] = Repo()
    hub.repos["lab/older"].commit({**files, "pytorch_model.bin": data.getvalue()})
    body = of_transformers.build("transformers:lab/older", None)
    assert hash_weights(body.module) == hash_weights(of_transformers.build(f"transformers:{folder}", None).module)
    assert {path.split("/")[1] for _, path, _ in hub.asked} == {"", "lab", "lfs"}


def test_a_token_opens_a_gated_repository_and_stays_with_the_hub(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos[NAME].gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    body = of_transformers.build(f"transformers:{NAME}", None)
    assert set(hub.tokens) == {"Bearer hf_secret"}
    assert "secret" not in f"{body.name} {body.weights_name} {body.weights_origin} {body.preprocess}"


def test_offline_uses_the_local_copy_and_asks_nothing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match="HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids"):
        of_transformers.build(f"transformers:{NAME}", None)
    assert not hub.asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    online = of_transformers.build(f"transformers:{NAME}", None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    offline = of_transformers.build(f"transformers:{NAME}", None)
    assert not hub.asked
    assert offline.weights_name == online.weights_name


def test_a_hub_that_does_not_answer_is_told_from_a_setting(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    with pytest.raises(BackboneError, match="does not answer: run again with a network"):
        of_transformers.build(f"transformers:{NAME}", None)


def test_open_clip_takes_a_repository_at_one_commit(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    model = tiny.save_open_clip(tmp_path / "clip")
    hub.repos["lab/clip"] = Repo()
    commit = hub.repos["lab/clip"].commit(tmp_path / "clip")
    body = of_open_clip.build("open_clip:hf-hub:lab/clip", None)
    assert (body.name, body.weights_name) == ("open_clip:hf-hub:lab/clip", commit)
    assert hash_weights(body.module) == hash_weights(model.visual)
    assert body.source == f"open_clip:hf-hub:lab/clip@{commit}"
    again = of_open_clip.build(body.source, None)
    assert hash_weights(again.module) == hash_weights(body.module)
    assert of_open_clip.text_tower(body.source, None).embed(["a cat"]).shape == (1, tiny.PROJECTED)


def test_a_run_remembers_a_commit_and_not_a_branch(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    first = load_backbone(f"transformers:{NAME}")
    hub.asked.clear()
    assert load_backbone(f"transformers:{NAME}").weights == first.weights
    assert [path for _, path, _ in hub.asked if "safetensors" in path] == []
    model, _ = tiny.build("vit")
    model.layernorm.weight.data += 1
    model.save_pretrained(other := shutil.copytree(folder, tmp_path / "other"))
    hub.repos[NAME].commit(other)
    assert load_backbone(f"transformers:{NAME}").weights.sha256 != first.weights.sha256


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network, as timm pushes it to a hub."""
    folder = tmp_path_factory.mktemp("timm")
    network: Any = timm.create_model("test_vit", num_classes=5)
    save_for_hf(network, str(folder), safe_serialization=True)
    return folder


@pytest.fixture
def timm_hub(hub: Hub, timm_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """A hub with that network, and nothing remembered of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    hub.repos["lab/timm"] = Repo()
    hub.repos["lab/timm"].commit(timm_folder)
    return hub


def test_timms_repository_is_that_of_a_commit(timm_hub: Hub, timm_folder: Path) -> None:
    commit = timm_hub.repos["lab/timm"].resolve("main")
    backbone = load_backbone("hf-hub:lab/timm")
    assert (backbone.weights.name, backbone.weights.source) == (commit, f"hf-hub:lab/timm@{commit}")
    assert backbone.weights.sha256 == load_backbone(f"local-dir:{timm_folder}").weights.sha256
    assert load_backbone(f"hf-hub:lab/timm@{commit}").to_spec() == backbone.to_spec()


def test_timms_transfer_that_breaks_off_is_continued(
    timm_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm_hub.breaks_after, timm_hub.keeps_breaking = 0, True
    with pytest.raises(BackboneError, match="run again") as caught:
        load_backbone("hf-hub:lab/timm")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "home").rglob("model.safetensors"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    timm_hub.breaks_after, timm_hub.keeps_breaking = 1000, False
    timm_hub.asked.clear()
    load_backbone("hf-hub:lab/timm")
    assert timm_hub.downloads() == ["", "bytes=1000-"]
    assert not list((tmp_path / "home").rglob("*.incomplete"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lab/nothing", "the hub has no repository lab/nothing, or it is private"),
        ("lab/timm@v9", "lab/timm has no revision 'v9'"),
        ("lab/closed", "lab/closed is gated: ask for access"),
        ("lab/text", "lab/text holds no"),
    ],
)
def test_every_refusal_of_timms_is_one_line(name: str, message: str, timm_hub: Hub, timm_folder: Path) -> None:
    timm_hub.repos["lab/closed"] = Repo(gated=True)
    timm_hub.repos["lab/closed"].commit(timm_folder)
    timm_hub.repos["lab/text"] = Repo()
    timm_hub.repos["lab/text"].commit({"README.md": b"# nothing here"})
    with pytest.raises(BackboneError, match=message) as caught:
        load_backbone(f"hf-hub:{name}")
    assert "\n" not in str(caught.value)


def test_timms_repository_is_used_offline_once_it_is_there(timm_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_backbone("hf-hub:lab/timm")
    timm_hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_backbone("hf-hub:lab/timm").to_spec() == first.to_spec()
    with pytest.raises(BackboneError, match="HF_HUB_OFFLINE"):
        load_backbone("hf-hub:lab/elsewhere")
    assert timm_hub.asked == []
