"""The stages as calls: what they return, what they show, and how Ctrl-C ends them."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import pipeline
from pipeline.core.callbacks import Callbacks
from pipeline.errors import PipelineError
from pipeline.stages.fit_head import FitResult, FitResults
from scripts.trivial_network import trivial_network
from tests.heads.standin import stand_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.training.probe import Probe

QUICK: dict[str, Any] = {"C": [0.1], "folds": 2, "device": "cpu"}


@pytest.fixture(autouse=True)
def _trivial() -> Iterator[None]:
    with trivial_network(batch_size=4):
        yield


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder with two classes of ten images each, and one file that is cut off."""
    rng = np.random.default_rng(3)
    for i in range(20):
        folder = tmp_path / "images" / ("dark", "light")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (32, 32, 3), dtype=np.uint8) + np.uint8(100 * (i % 2))
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    whole = (tmp_path / "images" / "dark" / "00.png").read_bytes()
    (tmp_path / "images" / "light" / "cut.png").write_bytes(whole[:900])
    return tmp_path / "images"


def test_an_extraction_prints_and_becomes_a_table(images: Path, tmp_path: Path) -> None:
    result = pipeline.extract(images, tmp_path / "c.h5", workers=1)
    assert repr(result).splitlines()[0].startswith(f"{tmp_path / 'c.h5'}: 20 of 21 images done (20 now, 1 failed)")
    assert "failed: 1 corrupt" in repr(result)
    assert result._repr_html_().startswith("<div>")
    assert {name: result.metrics[name] for name in ("total", "already", "computed", "failed")} == {
        "total": 21, "already": 0, "computed": 20, "failed": 1,
    }  # fmt: skip
    assert result.metrics["images_per_second"] * result.metrics["seconds"] == pytest.approx(20)
    table = result.to_pandas()
    assert len(table) == 21
    assert table.loc["light/cut.png", "status"] == "corrupt"
    assert table.loc["dark/00.png", "label"] == "dark"
    assert result.report is None
    again = pipeline.extract(str(images), str(tmp_path / "c.h5"), workers=1)
    assert (again.metrics["already"], again.metrics["computed"]) == (20, 0)


def test_a_shard_is_named_as_on_the_command_line(images: Path, tmp_path: Path) -> None:
    result = pipeline.extract(images, tmp_path / "part-{shard}.h5", shard="2/3", workers=1)
    assert result.path == tmp_path / "part-2.h5"
    assert len(pipeline.open_cache(result.path)) == 7


def test_a_fit_prints_and_becomes_a_table(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.extract(images, tmp_path / "c.h5", workers=1)
    monkeypatch.chdir(tmp_path)
    result = pipeline.fit_head("c.h5", "a run", **QUICK)
    assert isinstance(result, FitResult)
    assert repr(result).startswith("test: accuracy 1.0000")
    assert result.metrics["test"]["rows"] == 4
    assert result.report is not None
    assert result.report.is_file()
    shown = result._repr_html_()
    assert '<a href="a%20run/report.html"' in shown
    assert "<th>test accuracy</th><td>1.0000</td>" in shown
    table = result.to_pandas()
    assert table["label"].tolist() == table["predicted"].tolist()
    assert table[["p_dark", "p_light"]].sum(axis=1).to_numpy() == pytest.approx(np.ones(4), abs=1e-5)
    without = pipeline.fit_head("c.h5", "another", report=False, **QUICK)
    assert without.report is None
    assert "href" not in without._repr_html_()


def test_several_targets_give_a_result_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = stand_in()
    cache.columns["size"] = np.arange(len(cache)) * 0.5
    monkeypatch.setattr(sys.modules["pipeline.stages.fit_head"], "open_cache", lambda path: cache)
    results = pipeline.fit_head("c.h5", tmp_path / "run", target=["label", "size"], device="cpu", folds=2)
    assert isinstance(results, FitResults)
    assert [line.partition(":")[0] for line in repr(results).splitlines()] == ["label", "size"]
    assert results.metrics == {target: results[target].metrics for target in ("label", "size")}
    assert results.report == tmp_path / "run" / "report.html"
    assert "<th>size: test r2</th>" in results._repr_html_()
    assert results["size"].to_pandas()["predicted"].dtype == np.float64
    table = results.to_pandas()
    assert table["target"].value_counts().to_dict() == {
        target: len(results[target].to_pandas()) for target in ("label", "size")
    }
    assert sum(results.seconds.values()) == pytest.approx(
        sum(sum(results[target].seconds.values()) for target in ("label", "size"))
    )


def test_predictions_without_a_file_are_those_of_the_file(probe: Probe, tmp_path: Path) -> None:
    cut = tmp_path / "new"
    shutil.copytree(probe.images / "class1", cut)
    (cut / "cut.png").write_bytes((cut / "01.png").read_bytes()[:200])
    kept = pipeline.predict(probe.run, cut, engine="torch", workers=1)
    assert list(tmp_path.iterdir()) == [cut]
    written = pipeline.predict(probe.run, cut, tmp_path / "out.csv", engine="torch", workers=1)
    table = kept.to_pandas()
    pd.testing.assert_frame_equal(table, written.to_pandas())
    assert len(table) == kept.metrics["total"] == len(list(cut.iterdir()))
    assert kept.metrics["failed"] == 1
    assert table.loc["cut.png", "error"] != ""
    assert np.isnan(table.loc["cut.png", "p_class1"])
    assert set(table["predicted"]) <= {"", "class0", "class1", "class2"}
    assert repr(kept).startswith(f"{len(table)} images, 1 failed")
    assert repr(written).startswith(f"{tmp_path / 'out.csv'}: {len(table)} images")


def test_a_stopped_prediction_has_no_table(probe: Probe) -> None:
    callbacks = Callbacks()
    callbacks.stop.set()
    result = pipeline.predict(probe.run, probe.images, engine="torch", workers=1, callbacks=callbacks)
    assert repr(result) == "stopped; nothing was written"
    with pytest.raises(PipelineError, match="stopped"):
        result.to_pandas()


@pytest.mark.slow
def test_a_fine_tuning_prints_and_becomes_a_table(probe: Probe, tmp_path: Path) -> None:
    result = pipeline.finetune(
        probe.cache_path, probe.run, tmp_path / "tuned", epochs=1, schedule="head-only", workers=1, device="cpu"
    )
    assert repr(result) == f"{tmp_path / 'tuned'}: {result.advice}"
    assert result.metrics["test"]["rows"] == len(result.to_pandas())
    assert result.report == tmp_path / "tuned" / "report.html"
    assert "<th>test accuracy</th>" in result._repr_html_()


def interrupting_line(at: int) -> type:
    """Return a progress line that sends Ctrl-C once so many rows are ready."""

    class Line:
        def __init__(self, *what: Any, **how: Any) -> None:
            self.sent = False

        def __call__(self, ready: int, failed: int, total: int) -> None:
            if ready >= at and not self.sent:
                self.sent = True
                os.kill(os.getpid(), signal.SIGINT)

        def close(self) -> None:
            return

    return Line


def test_ctrl_c_keeps_what_is_done_and_the_same_call_resumes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.stages.calls.ProgressLine", interrupting_line(4))
        with pytest.raises(KeyboardInterrupt, match="the same call resumes"):
            pipeline.extract(images, tmp_path / "c.h5", workers=1)
    assert "stopping" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    done = pipeline.open_cache(tmp_path / "c.h5").status == 1
    assert 4 <= done.sum() < 20
    first = np.array(pipeline.open(tmp_path / "c.h5").embeddings)
    result = pipeline.extract(images, tmp_path / "c.h5", workers=1, verbose=False)
    assert (result.already, result.computed) == (int(done.sum()), 20 - int(done.sum()))
    assert np.array_equal(np.asarray(pipeline.open_cache(result.path).embeddings)[done], first)


def test_ctrl_c_in_a_fit_leaves_no_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules["pipeline.stages.fit_head"], "open_cache", lambda path: stand_in())

    def stop(*args: object, **more: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("pipeline.stages.fit_head.read_rows", stop)
    with pytest.raises(KeyboardInterrupt):
        pipeline.fit_head("c.h5", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_in_a_prediction_writes_nothing(probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stages.calls.ProgressLine", interrupting_line(0))
    with pytest.raises(KeyboardInterrupt, match="nothing was written"):
        pipeline.predict(probe.run, probe.images, tmp_path / "out.csv", engine="torch", workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_quiet_call_shows_nothing(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline.extract(images, tmp_path / "c.h5", workers=1, verbose=False)
    pipeline.fit_head(tmp_path / "c.h5", tmp_path / "run", verbose=False, report=False, **QUICK)
    assert capfd.readouterr() == ("", "")


def test_callbacks_take_the_place_of_the_bar(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int, int]] = []
    pipeline.extract(
        images, tmp_path / "c.h5", workers=1, callbacks=Callbacks(progress=lambda *counts: seen.append(counts))
    )
    assert seen[0] == (0, 0, 21)
    assert seen[-1] == (21, 1, 21)
    assert capfd.readouterr() == ("", "")
