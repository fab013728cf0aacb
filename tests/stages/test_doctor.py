"""The report on a machine: every part is looked at, faults are named with a way out, and nothing personal is in it."""

from __future__ import annotations

import json
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.backbones import load_backbone
from pipeline.engines import selfcheck
from pipeline.errors import EngineError
from pipeline.stages import doctor
from pipeline.stages.doctor import Finding, Verdict, diagnose
from tests.cli.run import run_command

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try one engine, briefly, and write little."""
    monkeypatch.setattr(doctor, "_combinations", lambda: iter([("torch", "cpu", "float32")]))
    monkeypatch.setattr(doctor, "SECONDS_OF_SPEED", 0.0)
    monkeypatch.setattr(doctor, "DISK_BYTES", 1 << 20)
    monkeypatch.setattr(doctor, "SLOW_DISK", 0)
    monkeypatch.setattr(doctor, "LEAST_DISK", 0)


@pytest.mark.usefixtures("quick")
def test_every_part_is_looked_at_and_the_report_names_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "secret-folder"
    folder.mkdir()
    ran = run_command("doctor", "--cache-folder", folder, "--store", f"file://{folder}", "--json")
    assert ran.exit_code == 0
    report = json.loads(ran.stdout)
    whats = [finding["what"] for finding in report["findings"]]
    for what in (
        "processor",
        "memory",
        "GPU",
        "engine torch on cpu in float32",
        "disk of the caches",
        "store 1 (file)",
    ):
        assert what in whats
    assert "torch" in report["versions"]
    assert "secret-folder" not in ran.stdout
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_used_is_wrong_and_the_rest_is_still_looked_at(tmp_path: Path) -> None:
    found = diagnose(tmp_path / "not there", [f"file://{tmp_path}/nothing"])
    wrong = {finding.what: finding for finding in found.findings if finding.verdict == Verdict.WRONG}
    assert set(wrong) == {"disk of the caches", "store 1 (file)"}
    assert not found.healthy
    assert str(tmp_path) not in str(wrong)
    assert any(finding.what == "disk of the networks" for finding in found.findings)


def test_wrong_numbers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "_combinations", lambda: iter([("torch", "cpu", "float32"), ("none", "cpu", "float32")])
    )

    def answer(backbone: object, images: object, expected: object, name: str, *rest: str) -> tuple[float, float]:
        if name == "none":
            raise EngineError("expected a library in /home/somebody/lib, found none")
        return 0.98, 10.0

    monkeypatch.setattr(doctor, "_try", answer)
    monkeypatch.setattr("pipeline.engines.selfcheck.reference", lambda backbone, images: {})
    wrong, refused = doctor._engines()
    assert (wrong.verdict, refused.verdict) == (Verdict.WRONG, Verdict.WRONG)
    assert "0.98000" in wrong.found
    assert "somebody" not in refused.found


def test_a_cosine_is_that_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SECONDS_OF_SPEED", 0.0)
    backbone = load_backbone("torchvision/squeezenet1_1", "random")
    images = doctor._smooth_images(backbone.preprocess.shape)
    assert images.std(axis=(1, 2, 3)).min() > 20  # structures, which networks of photographs answer to
    right = selfcheck.reference(backbone, images)
    name = backbone.layers[0].name
    assert doctor._try(backbone, images, right, "torch", "cpu", "float32")[0] > 0.99999
    others = {name: np.roll(right[name], 1, axis=0)}
    assert doctor._try(backbone, images, others, "torch", "cpu", "float32")[0] < 0.99999


def test_extras_are_those_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["numpy>=1", 'no-such-part>=2; extra == "odd"', 'numpy>=1; extra == "even"', 'pytest; extra == "dev"']
    monkeypatch.setattr(metadata, "requires", lambda name: needs)
    assert list(doctor._extras()) == [
        Finding("extra even", Verdict.OK, "installed"),
        Finding(
            "extra odd",
            Verdict.ABSENT,
            "without no-such-part",
            "where needed: pip install 'embedding-pipeline[odd]'",
        ),
    ]


def test_paths_are_left_out_and_addresses_without_them_stay() -> None:
    assert doctor._private("cannot open /home/me/x.so: gone") == "cannot open …: gone"
    assert doctor._private("no bucket b in s3://b/c", "s3://b/c") == "no bucket b in …"
