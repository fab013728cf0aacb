from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import ImageEmbedder, open_cache
from pipeline.cache.info import describe, describe_failures
from pipeline.core.items import Status
from pipeline.decoding import pool as pool_module
from pipeline.decoding.image import DecodePolicy
from pipeline.embedding import from_spec
from pipeline.embedding.bottleneck import find_bottleneck
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.settings import RunSettings
from pipeline.errors import CacheError, FingerprintError
from pipeline.sources.reopen import image_bytes
from pipeline.stages.extract import ExtractSettings, Summary, extract
from scripts.trivial_network import trivial_network

SETTINGS = ExtractSettings(run=RunSettings(precision="float32"))


@pytest.fixture(scope="module")
def cache_file(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache") / "whole.h5"
    summary = extract(str(image_folder), path, SETTINGS)
    assert (summary.total, summary.computed, summary.failed, summary.stopped) == (24, 24, 0, False)
    return path


def test_what_is_named_like_an_image_has_a_row(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (40, 30), "red").save(images / "a.png")
    (images / "b.jpg").write_bytes(b"")
    (images / "c.jpg").write_bytes(b"<html>not found</html>")
    (images / "d.svg").write_bytes(b"<svg></svg>")
    (images / "e.jpg").symlink_to("nowhere")
    (images / "notes").write_text("x")
    with trivial_network():
        summary = extract(str(images), tmp_path / "c.h5", SETTINGS)
    status = open_cache(tmp_path / "c.h5").status.tolist()
    failed = [Status.NOT_AN_IMAGE, Status.NOT_AN_IMAGE, Status.UNSUPPORTED, Status.UNREADABLE]
    assert status == [Status.DONE, *failed]
    assert summary.failed == 4
    assert str(summary.left_out) == "left out: 1 not an image (such as notes)"


def test_a_source_without_a_sound_image_has_failed_rows_only(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.cr2").write_bytes(b"II*\0\x10\0\0\0CR" + bytes(100))
    with trivial_network():
        summary = extract(str(tmp_path / "images" / "a.cr2"), tmp_path / "c.h5", SETTINGS)
    assert (summary.total, summary.failed) == (1, 1)
    assert open_cache(tmp_path / "c.h5").status.tolist() == [Status.UNSUPPORTED]


def test_the_cache_holds_what_the_source_had(cache_file: Path, image_folder: Path) -> None:
    cache = open_cache(cache_file)
    assert (len(cache), cache.width) == (24, 1280)
    assert (cache.status == Status.DONE).all()
    assert cache.label_names == ("ant", "bee", "cat")
    assert cache.keys.tolist() == sorted(str(p.relative_to(image_folder)) for p in image_folder.glob("*/*"))
    assert cache.embeddings.std() > 0.1
    assert image_bytes(cache, 3) == (image_folder / cache.keys[3]).read_bytes()
    assert sorted(path.name for path in cache_file.parent.iterdir()) in (
        ["whole.h5"],
        ["whole.h5", "whole.h5.run.json"],
    )


def test_the_same_command_again_computes_nothing(cache_file: Path, image_folder: Path) -> None:
    before = cache_file.read_bytes()
    summary = extract(str(image_folder), cache_file, SETTINGS)
    assert (summary.computed, summary.already) == (0, 24)
    assert cache_file.read_bytes() == before


def test_a_stopped_run_goes_on_and_equals_an_uninterrupted_one(
    cache_file: Path, image_folder: Path, tmp_path: Path
) -> None:
    path, stop, seen = tmp_path / "stopped.h5", threading.Event(), []

    def after_some(ready: int, failed: int, total: int) -> None:
        seen.append(ready)
        if ready:
            stop.set()

    first = extract(str(image_folder), path, SETTINGS, stop=stop, progress=after_some)
    assert first.stopped
    assert 0 < first.computed < 24
    assert (open_cache(path).status == Status.DONE).sum() == first.computed
    second = extract(str(image_folder), path, SETTINGS)
    assert (second.already, second.computed) == (first.computed, 24 - first.computed)
    assert path.read_bytes() == cache_file.read_bytes()


def test_a_stop_after_the_last_image_leaves_nothing(image_folder: Path, tmp_path: Path) -> None:
    stop = threading.Event()

    def after_all(ready: int, failed: int, total: int) -> None:
        if ready == total:
            stop.set()

    summary = extract(str(image_folder), tmp_path / "c.h5", SETTINGS, stop=stop, progress=after_all)
    assert not summary.stopped
    assert len(summary.headlines()) == 1
    assert "24 of 24 images done" in summary.headlines()[0]


@pytest.mark.parametrize(("computed", "lines"), [(99, 1), (100, 2)])
def test_few_images_do_not_say_where_the_time_went(computed: int, lines: int) -> None:
    bottleneck = find_bottleneck({"loop": 1.0, "wait for decode": 1.0}, workers=1)
    summary = Summary(Path("c.h5"), total=100, computed=computed, bottleneck=bottleneck)
    assert len(summary.headlines()) == lines


def test_a_stop_says_how_many_images_are_left() -> None:
    assert Summary(Path("c.h5"), total=9, computed=4, stopped=True).headlines()[-1].startswith("stopped, 5 left: ")
    assert Summary(Path("c.h5"), total=9, already=9, stopped=True).headlines()[-1].startswith("stopped: ")


def test_failed_images_are_rows_with_a_reason(image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    shutil.copytree(image_folder, root)
    whole = (root / "ant" / "00.png").read_bytes()
    (root / "ant" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "bee" / "empty-looking.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(50))
    Image.new("L", (500, 500)).save(root / "cat" / "large.png")
    settings = ExtractSettings(run=SETTINGS.run, decode=DecodePolicy(max_pixels=400 * 400))
    with trivial_network():
        summary = extract(str(root), tmp_path / "c.h5", settings)
    cache = open_cache(tmp_path / "c.h5")
    status = dict(zip(cache.keys.tolist(), cache.status.tolist(), strict=True))
    assert status["ant/cut.png"] == Status.CORRUPT
    assert status["bee/empty-looking.jpg"] == Status.CORRUPT
    assert status["cat/large.png"] == Status.TOO_LARGE
    assert summary.failed == sum(code > 1 for code in status.values())
    reasons = dict(describe_failures(tmp_path / "c.h5"))
    assert "500 × 500 pixels" in reasons["cat/large.png"]
    assert reasons["ant/cut.png"].startswith("corrupt: ")
    failed = [i for i, key in enumerate(cache.keys) if status[key] > 1]
    assert not cache.embeddings[failed].any()
    assert sum(describe(tmp_path / "c.h5")["status"].values()) == 27


def test_an_image_that_vanishes_fails_in_its_row(image_folder: Path, tmp_path: Path) -> None:
    from pipeline.sources import open_source

    shutil.copytree(image_folder, tmp_path / "images")
    source = open_source(str(tmp_path / "images"))
    (tmp_path / "images" / source[5].key).unlink()
    with trivial_network():
        extract(source, tmp_path / "c.h5", SETTINGS)
    cache = open_cache(tmp_path / "c.h5")
    assert cache.status[5] == Status.UNREADABLE
    assert (np.delete(cache.status, 5) == Status.DONE).all()


def test_a_pillow_that_differs_is_said_in_a_line(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = "decoding JPEGs by Pillow, which is slower: it decodes in another way"
    setup = f"import pipeline.decoding.worker as w; w.why_pillow = lambda: {note!r}; "
    monkeypatch.setattr(pool_module, "WORKER", setup + pool_module.WORKER)
    said: list[str] = []
    with trivial_network():
        summary = extract(str(image_folder), tmp_path / "c.h5", SETTINGS, say=said.append)
    assert summary.computed == 24
    assert said.count(note) == 1


def test_half_precision_files(cache_file: Path, image_folder: Path, tmp_path: Path) -> None:
    extract(str(image_folder), tmp_path / "half.h5", ExtractSettings(run=SETTINGS.run, dtype="float16"))
    half, whole = open_cache(tmp_path / "half.h5"), open_cache(cache_file)
    assert half.dtype == np.float16
    assert np.array_equal(half.embeddings, whole.embeddings.astype(np.float16))


def test_what_half_precision_cannot_hold_is_no_done_row(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.engines.openvino import OpenVinoEngine

    submit = OpenVinoEngine.submit

    def inflate(self: Any, images: Any) -> Any:
        future = submit(self, images)
        for rows in future.result().values():
            rows += 1e6
        return future

    settings = ExtractSettings(run=SETTINGS.run, dtype="float16")
    monkeypatch.setattr("pipeline.engines.selfcheck.least_cosine", lambda a, b: 1.0)
    monkeypatch.setattr(OpenVinoEngine, "submit", inflate)
    extract(str(image_folder), tmp_path / "half.h5", settings)
    cache = open_cache(tmp_path / "half.h5")
    assert (cache.status == Status.NOT_FINITE).all()
    assert not cache.embeddings.any()


def test_a_stop_before_the_check_is_through_begins_nothing(image_folder: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    summary = extract(str(image_folder), tmp_path / "c.h5", stop=stop)
    assert summary.stopped
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_several_layers_in_one_pass(cache_file: Path, image_folder: Path, tmp_path: Path) -> None:
    settings = ExtractSettings(run=SETTINGS.run, layers=("blocks.2:max", "blocks.4"))
    extract(str(image_folder), tmp_path / "l.h5", settings)
    cache = open_cache(tmp_path / "l.h5")
    assert {name: rows.shape for name, rows in cache.layers.items()} == {
        "penultimate": (24, 1280), "blocks.2:max": (24, 40), "blocks.4:avg": (24, 112),
    }  # fmt: skip
    assert np.array_equal(cache.embeddings, open_cache(cache_file).embeddings)


def test_other_settings_are_refused_by_field(cache_file: Path, image_folder: Path) -> None:
    before = cache_file.read_bytes()
    for settings, field in (
        (ExtractSettings(run=SETTINGS.run, dtype="float16"), "expected dtype float16, got float32"),
        (
            ExtractSettings(run=SETTINGS.run, decode=DecodePolicy(max_pixels=5)),
            "expected decode.max_pixels 5, got 200000000",
        ),
        (ExtractSettings(run=SETTINGS.run, weights="random"), "weights.sha256"),
    ):
        with pytest.raises(FingerprintError, match=field) as caught:
            extract(str(image_folder), cache_file, settings)
        assert "\n" not in str(caught.value)
    assert cache_file.read_bytes() == before


def test_a_cache_of_reduced_jpegs_is_read_but_not_continued(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.h5"
    with monkeypatch.context() as then:
        then.setattr(from_spec, "FULL_SIZE", "half")  # as 0.1.0 wrote it with --jpeg-scale half
        extract(str(image_folder), path, SETTINGS)
    before = path.read_bytes()
    assert open_cache(path).spec["decode"]["jpeg_scale"] == "half"
    with pytest.raises(FingerprintError, match=r"c\.h5: expected JPEGs decoded at full size, got") as caught:
        extract(str(image_folder), path, SETTINGS)
    assert str(caught.value).endswith("extract again into another output; what is in the cache stays readable")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    with pytest.raises(FingerprintError, match="the spec: expected JPEGs decoded at full size"):
        Embedder.of_spec(open_cache(path).spec, ("penultimate",), SETTINGS.run)
    rows = ImageEmbedder(cache=path).transform([image_folder / open_cache(path).keys[0]])
    assert np.array_equal(rows[0], open_cache(path).embeddings[0])


def test_an_output_that_cannot_be_is_refused_before_the_work(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for output, message in (
        (tmp_path, "found the folder"),
        (tmp_path / "none" / "c.h5", "found none"),
        (tmp_path / "notes.txt", "found something else"),
    ):
        with pytest.raises(CacheError, match=message):
            extract(str(image_folder), output, SETTINGS)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_any_reader_opens_it(cache_file: Path) -> None:
    import h5py

    with h5py.File(cache_file) as file:
        assert file["embeddings"].shape == (24, 1280)
        assert file["keys"][0].decode().startswith("ant/")
        assert file["label_names"].asstr()[:].tolist() == ["ant", "bee", "cat"]
        assert file.attrs["format"] == b"embedding-pipeline"
