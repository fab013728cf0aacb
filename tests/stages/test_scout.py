"""The stage scout: rounds, resuming, dropping, and what it writes."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import pipeline
from pipeline.embedding.settings import RunSettings
from pipeline.errors import BackboneError, EngineError, FingerprintError, OptionError, PipelineError
from pipeline.stages import scout as stage
from pipeline.stages.extract import Summary
from pipeline.stages.extract import extract as extract_images
from pipeline.stages.scout import ScoutResult, ScoutSettings, scout
from tests.cli.run import run_command

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.sources.base import Source

RUN = RunSettings(engine="torch", precision="float32", workers=1)
ONE = ScoutSettings(backbones=("timm/test_efficientnet=random",), layers=("blocks.1",), rows=40, folds=3, run=RUN)
TWO = replace(ONE, backbones=(*ONE.backbones, "timm/test_byobnet=random"), report=False)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 60 small images of three classes, told by their colour and by noise."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(60):
        folder = root / ("blue", "green", "red")[i % 3]
        folder.mkdir(exist_ok=True)
        pixels = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
        pixels[..., 2 - i % 3] += 60
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def done(images: Path, tmp_path_factory: pytest.TempPathFactory) -> ScoutResult:
    """Return the result of one network with a layer."""
    return scout(str(images), tmp_path_factory.mktemp("scout") / "s", ONE)


def test_every_candidate_has_a_line(done: ScoutResult) -> None:
    name = "timm/test_efficientnet=random"
    assert {line.candidate for line in done.lines} == {name, f"{name} blocks.1:avg", f"{name} concat"}
    assert sum(line.recommended for line in done.lines) == 1
    assert [line.standing for line in done.lines].count("best") == 1
    assert done.lines[0].accuracy == max(line.accuracy for line in done.lines)
    widths = pipeline.open_cache(done.folder / done.lines[0].cache).widths
    for line in done.lines:
        assert line.rows == 40
        assert line.width == sum(widths[layer] for layer in line.layers.split(" + "))
        assert line.low <= line.accuracy <= line.high
        assert line.difference == pytest.approx(line.accuracy - done.lines[0].accuracy)
        assert line.archive_seconds == pytest.approx(60 / line.images_per_second)
    equals = [line for line in done.lines if line.standing != "worse"]
    assert done.recommended.width == min(line.width for line in equals)


def test_the_table_is_that_of_the_result(done: ScoutResult) -> None:
    table = pd.read_csv(done.folder / "scout.csv")
    frame = done.to_pandas()
    assert table["candidate"].tolist() == frame.index.tolist() == list(done.metrics)
    assert table["accuracy"].to_numpy() == pytest.approx(frame["accuracy"].to_numpy(), abs=1e-5)
    assert table["recommended"].notna().tolist() == frame["recommended"].tolist()
    assert repr(done).startswith(f"recommended: {done.recommended.candidate}: accuracy ")
    assert "<table>" in done._repr_html_()
    assert done.report == done.folder / "report.html"
    page = done.report.read_text()
    assert f"<h1>Take {done.recommended.candidate}</h1>" in page
    assert "plot-accuracy" in page
    assert not re.search(r"""(src|href)=["']?http""", page)


def test_its_cache_becomes_one_of_the_whole_archive(done: ScoutResult, images: Path) -> None:
    (path,) = done.folder.glob("*.h5")
    before = pipeline.open_cache(path)
    rows = {key: np.array(row) for key, row in zip(before.keys.tolist(), before.embeddings, strict=True)}
    assert len(rows) == 40
    options: dict[str, Any] = {"weights": "random", "layer": "blocks.1", "engine": "torch", "workers": 1}
    summary = pipeline.extract(images, path, backbone="timm/test_efficientnet", verbose=False, **options)
    assert (summary.already, summary.computed) == (40, 20)
    after = pipeline.open_cache(path)
    assert len(after) == 60
    for key, row in zip(after.keys.tolist(), after.embeddings, strict=True):
        if key in rows:
            np.testing.assert_array_equal(row, rows[key])


def test_the_same_command_computes_nothing_again(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scout(str(images), tmp_path / "s", replace(ONE, report=False))
    summaries: list[Summary] = []
    extract = extract_images

    def watched(*args: Any, **options: Any) -> Summary:
        summaries.append(extract(*args, **options))
        return summaries[-1]

    monkeypatch.setattr(stage, "extract", watched)
    again = scout(str(images), tmp_path / "s", replace(ONE, report=False))
    assert again.lines == first.lines
    assert [(summary.already, summary.computed) for summary in summaries] == [(40, 0)]
    # Fewer images: the cache keeps its rows. More: it gets them.
    assert scout(str(images), tmp_path / "s", replace(ONE, rows=20, report=False)).lines[0].rows == 20
    assert scout(str(images), tmp_path / "s", replace(ONE, rows=50, report=False)).lines[0].rows == 50
    assert [(summary.already, summary.computed) for summary in summaries[1:]] == [(20, 0), (40, 10)]
    assert first.report is None


def test_a_stop_keeps_what_is_embedded(images: Path, tmp_path: Path) -> None:
    stop = threading.Event()

    def progress(ready: int, failed: int, total: int) -> None:
        if ready:
            stop.set()

    small = replace(ONE, run=replace(RUN, batch_size=4))
    result = scout(str(images), tmp_path / "s", small, stop=stop, progress=progress)
    assert result.stopped
    assert result.headlines() == ["stopped: the same command continues"]
    assert not (tmp_path / "s" / "scout.csv").exists()
    (path,) = (tmp_path / "s").glob("*.h5")
    assert 0 < (pipeline.open_cache(path).status == 1).sum() < 40
    assert len(scout(str(images), tmp_path / "s", small).lines) == 3


class Fake:
    """Stands for the embedding: each network has its own speed, and embeddings as good as it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, quality: dict[str, float], speed: dict[str, float]) -> None:
        self.quality, self.speed, self.clock = quality, speed, 0.0
        self.embedded: dict[str, int] = dict.fromkeys(quality, 0)
        monkeypatch.setattr(stage, "extract", self.extract)
        monkeypatch.setattr(stage, "open_cache", self.open)
        monkeypatch.setattr(stage, "load_backbone", lambda *args, **options: None)
        monkeypatch.setattr(stage, "FIRST_ROWS", 50)
        monkeypatch.setattr(stage, "monotonic", lambda: self.clock)
        self.sources: dict[str, Source] = {}

    def extract(self, source: Source, path: Path, settings: Any, *, stop: Any, say: Any, progress: Any) -> Summary:
        name = path.stem
        new = len(source) - self.embedded[name]
        seconds = new / self.speed[name]
        self.clock += seconds
        summary = Summary(path, total=len(source), already=self.embedded[name], computed=new, stopped=stop.is_set())
        summary.seconds["loop"] = seconds
        self.embedded[name], self.sources[name] = len(source), source
        return summary

    def open(self, path: Path) -> Any:
        source, quality = self.sources[path.stem], self.quality[path.stem]
        rng = np.random.default_rng(0)
        signal = quality * np.eye(3)[source.items.labels]
        X = (signal + rng.normal(size=(len(source), 3))).astype(np.float32)

        class Held:
            items, status = source.items, np.ones(len(source), np.uint8)
            widths, width, layers, dtype, nbytes = {"penultimate": 3}, 3, {"penultimate": X}, X.dtype, 1000

            def layer(self, name: str) -> Any:
                return X

            def __len__(self) -> int:
                return len(source)

        return Held()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Return a source of 600 names of files that nobody reads."""
    from pipeline.sources import open_source

    root = tmp_path_factory.mktemp("many")
    lines = ["path,label"]
    for i in range(600):
        (root / f"{i}.png").write_bytes(b"")
        lines.append(f"{i}.png,{'abc'[i % 3]}")
    (root / "t.csv").write_text("\n".join(lines) + "\n")
    return open_source(str(root / "t.csv"))


LIMITED = ScoutSettings(backbones=("a", "b", "c", "d"), rows=400, minutes=1.0, folds=3, report=False)


def test_in_time_for_all_nothing_is_dropped(many: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}, dict.fromkeys("abcd", 1000.0))
    result = scout(many, tmp_path / "s", LIMITED)
    assert fake.embedded == dict.fromkeys("abcd", 400)
    assert [line.network for line in result.lines] == ["a", "b", "c", "d"]
    assert result.notes == ()


def test_the_weakest_are_dropped_where_the_time_is_short(
    many: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(monkeypatch, {"a": 1.0, "b": 4.0, "c": 0.2, "d": 3.0}, dict.fromkeys("abcd", 12.0))
    result = scout(many, tmp_path / "s", LIMITED)
    assert fake.clock <= 60 + 1
    assert fake.embedded["a"] == fake.embedded["c"] < fake.embedded["b"] == fake.embedded["d"]
    assert {line.network: line.standing for line in result.lines if line.standing == "dropped"} == {
        "a": "dropped", "c": "dropped",
    }  # fmt: skip
    assert {line.rows for line in result.lines} == {fake.embedded["a"], fake.embedded["b"]}
    assert f"a: dropped after {fake.embedded['a']} images, to save time" in result.notes
    assert result.recommended.network in "bd"


def test_a_network_that_takes_more_than_its_share_is_too_slow(
    many: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Fake(monkeypatch, {"a": 3.0, "b": 4.0, "c": 0.2, "d": 3.0}, {"a": 900.0, "b": 1.0, "c": 900.0, "d": 900.0})
    result = scout(many, tmp_path / "s", LIMITED)
    assert {line.network for line in result.lines} == {"a", "c", "d"}
    assert result.notes[0].startswith("b: too slow: 50 of 50 images in 20 s")


def test_equally_good_networks_are_told_apart_by_their_speed(
    many: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Fake(monkeypatch, {"a": 5.0, "b": 5.0, "c": 0.5, "d": 5.0}, {"a": 10.0, "b": 200.0, "c": 999.0, "d": 100.0})
    result = scout(many, tmp_path / "s", replace(LIMITED, minutes=None))
    assert result.recommended.network == "b"
    assert result.metrics["c"]["standing"] == "worse"
    assert result.metrics["b"]["archive_seconds"] == pytest.approx(600 / 200)


def test_a_network_that_does_not_run_leaves_the_others(
    many: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(monkeypatch, {"a": 3.0, "b": 4.0, "c": 0.2, "d": 3.0}, dict.fromkeys("abcd", 100.0))
    extract = fake.extract

    def failing(source: Source, path: Path, *args: Any, **options: Any) -> Summary:
        if path.stem in broken:
            raise EngineError("no such operator")
        return extract(source, path, *args, **options)

    monkeypatch.setattr(stage, "extract", failing)
    broken = "b"
    result = scout(many, tmp_path / "s", replace(LIMITED, minutes=None))
    assert {line.network for line in result.lines} == {"a", "c", "d"}
    assert result.notes == ("b: it does not run: no such operator",)
    broken = "abcd"
    with pytest.raises(PipelineError, match=r"found none .*a: it does not run"):
        scout(many, tmp_path / "s2", replace(LIMITED, minutes=None))


def test_what_cannot_be_is_refused_before_anything_is_embedded(images: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    (tmp_path / "plain").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "plain" / "a.png")
    cases: list[tuple[type[PipelineError], str, str | Path, str, ScoutSettings]] = [
        (PipelineError, "no folder of pipeline scout", images, "full", ONE),
        (PipelineError, "no image has a label", tmp_path / "plain", "s", ONE),
        (BackboneError, "there is no backbone 'timm/rsnet'", images, "s", replace(ONE, backbones=("timm/rsnet",))),
        (OptionError, "--backbones or a list with --set", images, "s", replace(ONE, named_set="small")),
    ]
    for error, message, source, output, settings in cases:
        with pytest.raises(error, match=message) as caught:
            scout(str(source), tmp_path / output, settings)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.rglob("*.h5"))
        assert not (tmp_path / "s").exists()


def test_other_layers_want_another_folder(images: Path, tmp_path: Path) -> None:
    scout(str(images), tmp_path / "s", replace(ONE, rows=20, report=False))
    with pytest.raises(FingerprintError, match="another output"):
        scout(str(images), tmp_path / "s", replace(ONE, rows=20, layers=("blocks.2",)))


def test_two_networks_on_the_command_line(images: Path, tmp_path: Path) -> None:
    arguments = ["--backbones", ",".join(TWO.backbones), "--rows", "24", "--folds", "2", "--engine", "torch"]
    answer = run_command("scout", str(images), "-o", str(tmp_path / "s"), *arguments, "--workers", "1")
    assert answer.exit_code == 0, answer.stderr
    lines = [line.split("\t") for line in answer.stdout.splitlines()]
    assert lines[0][:2] == ["candidate", "accuracy"]
    assert {line[0] for line in lines[1:]} == set(TWO.backbones)
    assert [line[-1] for line in lines[1:]].count("yes") == 1
    assert "recommended: timm/test_" in answer.stderr
    assert "plot-cost" in (tmp_path / "s" / "report.html").read_text()
    facts = json.loads((tmp_path / "s" / "scout.json").read_text())
    assert {entry["network"]: entry["images"] for entry in facts["networks"].values()} == dict.fromkeys(
        TWO.backbones, 24
    )
