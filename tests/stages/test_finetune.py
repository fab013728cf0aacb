from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from pipeline.backbones import load_backbone
from pipeline.cache import open_cache
from pipeline.embedding.from_spec import backbone_of_spec
from pipeline.embedding.settings import RunSettings
from pipeline.errors import HeadError, PipelineError, SourceError
from pipeline.fitting.compare import compare_runs
from pipeline.heads import load_head
from pipeline.stages.extract import ExtractSettings, extract
from pipeline.stages.finetune import FinetuneResult, FinetuneSettings, finetune
from pipeline.stages.fit_head import FitSettings, fit_head
from pipeline.stages.predict import predict
from pipeline.training.mix import choose_share
from pipeline.training.settings import TrainSettings
from tests.browser import opened

if TYPE_CHECKING:
    from pathlib import Path

    from tests.training.probe import Probe

RUN = RunSettings(engine="torch", precision="float32", workers=1)
TRAIN = TrainSettings(epochs=2, batch_size=16, precision="float32", device="cpu", lr=3e-3)
SETTINGS = FinetuneSettings(train=TRAIN, run=RUN, replicates=50)


@pytest.fixture(scope="module")
def tuned(probe: Probe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FinetuneResult]:
    folder = tmp_path_factory.mktemp("tuned") / "run2"
    return folder, finetune(probe.cache_path, probe.run, folder, SETTINGS)


def predictions(run: Path) -> dict[str, str]:
    with (run / "predictions.csv").open(newline="") as file:
        return {row["key"]: row["predicted"] for row in csv.DictReader(file) if row.get("split", "test") == "test"}


def test_the_run_folder_holds_a_backbone_with_its_head(tuned: tuple[Path, FinetuneResult]) -> None:
    folder, result = tuned
    names = {"backbone.safetensors", "head.safetensors", "last.safetensors", "metrics.json", "predictions.csv"}
    assert names | {"report.html", "run.json"} == {file.name for file in folder.iterdir()}
    assert not [file for file in folder.parent.iterdir() if file != folder]  # no checkpoint stays
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test"]["accuracy"]["value"] == result.metrics["test"]["accuracy"]["value"]
    assert [entry["epoch"] for entry in metrics["training"]["history"]] == [0, 1, 2]
    assert metrics["against_probe"]["advice"] == result.advice
    assert metrics["mix"]["share"] == choose_share(metrics["mix"]["tried"])
    assert "held out of training for it" in (folder / "report.html").read_text(encoding="utf-8")


def test_it_is_compared_with_the_probe_on_the_same_rows(probe: Probe, tuned: tuple[Path, FinetuneResult]) -> None:
    folder, result = tuned
    found = compare_runs([probe.run, folder], replicates=50)[1]
    assert result.comparison is not None
    assert found.difference == result.comparison.difference
    assert predictions(probe.run).keys() == predictions(folder).keys()
    gain = result.comparison.difference
    assert result.advice.startswith("use the fine-tuned" if gain.low > 0 else "keep the probe")


def test_extracting_with_it_gives_what_was_measured(
    probe: Probe, tuned: tuple[Path, FinetuneResult], tmp_path: Path
) -> None:
    folder, _ = tuned
    extract(str(probe.images), tmp_path / "c.h5", ExtractSettings(weights=str(folder), run=RUN))
    cache, head = open_cache(tmp_path / "c.h5"), load_head(folder)
    assert cache.fingerprint == head.fingerprint != probe.cache.fingerprint
    assert cache.spec["weights"]["name"] == "fine-tuned"
    assert cache.spec["backbone"] == "timm/test_efficientnet"
    named = dict(zip(cache.keys.tolist(), head.predict(np.array(cache.embeddings)).tolist(), strict=True))
    assert {key: named[key] for key in predictions(folder)} == predictions(folder)
    assert not np.array_equal(cache.embeddings, probe.cache.embeddings)


def test_predicting_with_it_needs_nothing_else(
    probe: Probe, tuned: tuple[Path, FinetuneResult], tmp_path: Path
) -> None:
    folder, _ = tuned
    predict(folder, str(probe.images), tmp_path / "p.csv", RUN)
    with (tmp_path / "p.csv").open(newline="") as file:
        named = {row["key"]: row["predicted"] for row in csv.DictReader(file)}
    assert {key: named[key] for key in predictions(folder)} == predictions(folder)


def test_another_backbone_with_its_weights_is_refused(tuned: tuple[Path, FinetuneResult], probe: Probe) -> None:
    folder, _ = tuned
    with pytest.raises(PipelineError, match=r"holds a timm/test_efficientnet, found --backbone torchvision/resnet18"):
        extract(str(probe.images), folder.parent / "no.h5", ExtractSettings("torchvision/resnet18", str(folder)))


def test_a_head_of_another_cache_is_refused(probe: Probe, tmp_path: Path) -> None:
    settings = ExtractSettings(backbone="timm/test_resnet", weights="random", run=RUN)
    extract(str(probe.images), tmp_path / "other.h5", settings)
    with pytest.raises(HeadError, match="fingerprint"):
        finetune(tmp_path / "other.h5", probe.run, tmp_path / "run2", SETTINGS)
    assert not (tmp_path / "run2").exists()


def test_a_head_that_is_not_linear_is_refused(probe: Probe, tmp_path: Path) -> None:
    fit_head(probe.cache_path, tmp_path / "knn", FitSettings(head="knn", learning_curve=False, report=False))
    with pytest.raises(HeadError, match="expected a linear classifier to start from, found a head 'knn'"):
        finetune(probe.cache_path, tmp_path / "knn", tmp_path / "run2", SETTINGS)


@pytest.mark.slow
def test_a_stop_leaves_a_checkpoint_and_the_same_command_goes_on(
    probe: Probe, tuned: tuple[Path, FinetuneResult], tmp_path: Path
) -> None:
    stop = threading.Event()
    part = finetune(
        probe.cache_path, probe.run, tmp_path / "run2", SETTINGS, stop=stop, progress=lambda *state: stop.set()
    )
    assert part.stopped
    assert not (tmp_path / "run2").exists()
    said: list[str] = []
    whole = finetune(probe.cache_path, probe.run, tmp_path / "run2", SETTINGS, say=said.append)
    assert any(line.startswith("going on at epoch 1, step 2") for line in said)
    assert (tmp_path / "run2" / "backbone.safetensors").read_bytes() == (tuned[0] / "backbone.safetensors").read_bytes()
    assert whole.metrics["test"] == tuned[1].metrics["test"]


@pytest.mark.slow
def test_a_stop_while_measuring_writes_no_run(probe: Probe, tmp_path: Path) -> None:
    stop, settings = threading.Event(), replace(SETTINGS, train=replace(TRAIN, epochs=1))

    def say(text: str) -> None:
        if text.startswith("epoch 1 of 1"):
            stop.set()

    part = finetune(probe.cache_path, probe.run, tmp_path / "run2", settings, stop=stop, say=say)
    assert part.stopped
    assert not (tmp_path / "run2").exists()
    whole = finetune(probe.cache_path, probe.run, tmp_path / "run2", settings)
    assert whole.metrics["test"]["rows"] > 0


@pytest.mark.slow
def test_another_start_does_not_go_on(probe: Probe, tmp_path: Path) -> None:
    stop = threading.Event()
    output = tmp_path / "run2"
    finetune(probe.cache_path, probe.run, output, SETTINGS, stop=stop, progress=lambda *state: stop.set())
    with pytest.raises(PipelineError, match="of another cache, split, probe or start"):
        finetune(probe.cache_path, probe.run, output, replace(SETTINGS, start="random"))
    fit_head(probe.cache_path, tmp_path / "other", FitSettings(Cs=(1.0,), learning_curve=False, report=False, seed=7))
    with pytest.raises(PipelineError, match="of another cache, split, probe or start"):
        finetune(probe.cache_path, tmp_path / "other", output, SETTINGS)


def test_a_test_image_that_changed_is_named(probe: Probe, tmp_path: Path) -> None:
    keys = list(predictions(probe.run))
    file, other = probe.images / keys[0], probe.images / keys[1]
    kept = file.read_bytes()
    try:
        file.write_bytes(other.read_bytes())
        with pytest.raises(SourceError, match=f"{keys[0]} has other content"):
            finetune(probe.cache_path, probe.run, tmp_path / "run2", replace(SETTINGS, train=replace(TRAIN, epochs=1)))
    finally:
        file.write_bytes(kept)
    assert not (tmp_path / "run2").exists()


def test_what_cannot_be_written_or_measured_is_refused_before_training(probe: Probe, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="another folder than the probe's"):
        finetune(probe.cache_path, probe.run, probe.run, SETTINGS)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("It was a dark and stormy night.")
    with pytest.raises(HeadError, match="exists and is not a run folder"):
        finetune(probe.cache_path, probe.run, tmp_path / "thesis", SETTINGS)
    shutil.copytree(probe.run, tmp_path / "other")
    text = (probe.run / "predictions.csv").read_text().splitlines(keepends=True)
    (tmp_path / "other" / "predictions.csv").write_text("".join(text[:-1]))
    with pytest.raises(HeadError, match="1 differ"):
        finetune(probe.cache_path, tmp_path / "other", tmp_path / "run2", SETTINGS)


@pytest.mark.slow
def test_a_mix_lies_between_the_start_and_the_tuned_network(probe: Probe, tmp_path: Path) -> None:
    once = replace(SETTINGS, train=replace(TRAIN, epochs=1))
    whole = finetune(probe.cache_path, probe.run, tmp_path / "whole", replace(once, mix="none", report=False))
    half = finetune(probe.cache_path, probe.run, tmp_path / "half", replace(once, mix=0.5))
    assert (whole.metrics["mix"], whole.tuned) == ({"share": 1.0, "tried": []}, None)
    begun = backbone_of_spec(probe.cache.spec).network.body.state_dict()
    ends, mixed = (load_backbone(None, str(tmp_path / run)).network.body.state_dict() for run in ("whole", "half"))
    for name, tensor in ends.items():
        np.testing.assert_allclose(mixed[name], torch.lerp(begun[name].double(), tensor.double(), 0.5), atol=1e-6)
    assert half.tuned is not None
    assert half.tuned.figure.value == whole.metrics["against_probe"]["accuracy"]["value"]
    assert half.metrics["mix"]["tuned"]["difference"] == half.tuned.difference.as_dict()
    assert "before it was mixed" in half.headlines()[1]
    page = (tmp_path / "half" / "report.html").read_text(encoding="utf-8")
    assert "mix: 0.5 of the tuned network" in page


@pytest.mark.slow
def test_no_share_is_chosen_by_rows_that_the_head_has_seen(probe: Probe, tmp_path: Path) -> None:
    fit_head(probe.cache_path, tmp_path / "lda", FitSettings(head="lda", learning_curve=False, report=False, folds=2))
    said: list[str] = []
    once = replace(SETTINGS, train=replace(TRAIN, epochs=1), report=False)
    result = finetune(probe.cache_path, tmp_path / "lda", tmp_path / "run2", once, say=said.append)
    assert result.metrics["mix"] == {"share": 1.0, "tried": []}
    assert any(line.startswith("--mix auto is none here") for line in said)


@pytest.mark.slow
def test_a_random_start_is_there_to_compare(probe: Probe, tmp_path: Path) -> None:
    settings = replace(SETTINGS, start="random", train=replace(TRAIN, epochs=1), report=False)
    result = finetune(probe.cache_path, probe.run, tmp_path / "run2", settings)
    assert result.metrics["training"]["start"] == "random"


@pytest.mark.slow
def test_a_kill_in_the_middle_changes_nothing(probe: Probe, tuned: tuple[Path, FinetuneResult], tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "pipeline", "finetune", str(probe.cache_path), str(probe.run),
        "-o", str(tmp_path / "run2"), "--epochs", "2", "--batch-size", "16", "--precision", "float32",
        "--device", "cpu", "--lr", "3e-3", "--workers", "1", "--no-report",
    ]  # fmt: skip
    for _ in range(2):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        checkpoint = tmp_path / ".run2.training" / "checkpoint.pt"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert (tmp_path / "run2" / "backbone.safetensors").read_bytes() == (tuned[0] / "backbone.safetensors").read_bytes()


@pytest.mark.slow
def test_two_processes_train_together(probe: Probe, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--module", "pipeline", "finetune",
        str(probe.cache_path), str(probe.run), "-o", str(tmp_path / "run2"), "--epochs", "1", "--batch-size", "16",
        "--precision", "float32", "--device", "cpu", "--workers", "1", "--no-report",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    assert (tmp_path / "run2" / "backbone.safetensors").exists()


@pytest.mark.slow
def test_onnx_gives_the_same_probabilities(tuned: tuple[Path, FinetuneResult], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from pipeline.training.onnx import export_onnx

    assert export_onnx(tuned[0], tmp_path / "m.onnx") < 1e-4
    facts = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).get_modelmeta().custom_metadata_map
    assert json.loads(facts["class_names"]) == list(load_head(tuned[0]).class_names)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_shows_the_training(browser: Any, tuned: tuple[Path, FinetuneResult], width: int) -> None:
    with opened(browser, tuned[0] / "report.html", width) as page:
        for plot in ("training", "depth", "mix"):
            page.wait_for_selector(f"#plot-{plot} .point")
        assert "Against the probe" in page.content()
        assert "Probe, tuned network and mix" in page.content()


def test_a_folder_of_a_user_is_not_taken_for_that_of_the_checkpoint(probe: Probe, tmp_path: Path) -> None:
    mine = tmp_path / ".run2.training" / "notes"
    mine.parent.mkdir()
    mine.touch()
    with pytest.raises(PipelineError, match=r"\.run2\.training exists and was not written by this command"):
        finetune(probe.cache_path, probe.run, tmp_path / "run2", replace(SETTINGS, restart=True))
    assert mine.exists()
