"""A cache's life through the whole of stage 1: a changing archive, failures and retries, stops, a second writer."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline import open_cache
from pipeline.cache import write_lock
from pipeline.cache.replace import unfinished_path
from pipeline.cache.verify import verify
from pipeline.core.items import Status
from pipeline.embedding.settings import RunSettings
from pipeline.errors import LockedError, PipelineError
from pipeline.sources.reopen import reopen_source
from pipeline.stages.extract import ExtractSettings, Summary, extract
from scripts.trivial_network import trivial_network
from tests.cli.run import run_command
from tests.measured import processor_time, processor_time_of_ended

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RUN = RunSettings(engine="torch", precision="float32", workers=1, batch_size=4)


@pytest.fixture(autouse=True)
def no_network() -> Iterator[None]:
    """What is computed is no matter here; the signals' tests start processes, which have a small network."""
    with trivial_network(batch_size=4):
        yield


def run(images: Path, path: Path, say: Any = lambda text: None, **settings: Any) -> Summary:
    return extract(str(images), path, ExtractSettings(run=RUN, **settings), say=say)


@pytest.fixture
def images(image_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(image_folder, tmp_path / "images")
    return tmp_path / "images"


def embeddings_by_key(path: Path) -> dict[str, bytes]:
    cache = open_cache(path)
    return {key: cache.embeddings[row].tobytes() for row, key in enumerate(cache.keys) if cache.status[row] == 1}


def test_an_archive_that_changed_is_followed_and_equals_a_fresh_cache(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    run(images, path)
    old = embeddings_by_key(path)
    files = sorted(images.glob("*/*"))
    files[0].unlink()
    shutil.copy2(files[1], files[0].parent / "renamed.png")
    files[1].unlink()
    files[2].write_bytes(files[3].read_bytes())  # changed, to another size
    os.utime(files[4])  # touched only
    (images / "new").mkdir()
    shutil.copy(files[5], images / "new" / "copy.png")
    summary = run(images, path)
    assert summary.changes == {
        "added": 1, "changed": 1, "deleted": 1, "renamed": 1, "relabelled": 0, "unchanged": 21,
    }  # fmt: skip
    assert summary.computed == 2
    assert not unfinished_path(path).exists()
    run(images, tmp_path / "fresh.h5")
    assert embeddings_by_key(path) == embeddings_by_key(tmp_path / "fresh.h5")
    assert open_cache(path).label_names == open_cache(tmp_path / "fresh.h5").label_names
    kept = old.keys() & embeddings_by_key(path).keys() - {str(files[2].relative_to(images))}
    assert all(old[key] == embeddings_by_key(path)[key] for key in kept)
    assert verify(path, hash_images=lambda cache: reopen_source(cache.source, cache.items).content_hashes()).complete
    assert run(images, path).changes == {}


def test_content_that_changed_behind_its_time_is_found_when_asked(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    run(images, path)
    file = sorted(images.glob("*/*.png"))[0]
    info, data = file.stat(), bytearray(file.read_bytes())
    data[-20] ^= 1  # in the last chunk's checksum, or just before it
    file.write_bytes(data)
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert run(images, path).changes == {}
    found = verify(path, hash_images=lambda cache: reopen_source(cache.source, cache.items).content_hashes())
    assert found.images_changed == [str(file.relative_to(images))]
    assert run(images, path, check_content=True).changes["changed"] == 1
    assert (
        verify(path, hash_images=lambda cache: reopen_source(cache.source, cache.items).content_hashes()).images_changed
        == []
    )


def test_a_stopped_update_leaves_the_old_cache_and_goes_on(images: Path, tmp_path: Path) -> None:
    path, stop = tmp_path / "c.h5", threading.Event()
    run(images, path)
    before = path.read_bytes()
    for file in sorted(images.glob("*/*.png")):
        shutil.copy(file, file.with_name("more" + file.name))
        file.with_name("more" + file.name).write_bytes(file.read_bytes() + b"\0")  # not a rename, not a copy
    settings = ExtractSettings(run=RUN)

    def stop_soon(ready: int, failed: int, total: int) -> None:
        if ready > 24:
            stop.set()

    first = extract(str(images), path, settings, stop=stop, progress=stop_soon)
    assert first.stopped
    assert 0 < first.computed < 12
    assert path.read_bytes() == before
    second = run(images, path)
    assert second.changes["added"] == 12
    assert second.computed == 12 - first.computed
    run(images, tmp_path / "fresh.h5")
    assert embeddings_by_key(path) == embeddings_by_key(tmp_path / "fresh.h5")


def test_failures_are_tried_again_only_when_asked(images: Path, tmp_path: Path) -> None:
    path, file = tmp_path / "c.h5", sorted(images.glob("*/*.png"))[0]
    whole, info = file.read_bytes(), file.stat()
    file.write_bytes(whole[:60] + bytes(len(whole) - 60))
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert run(images, path).failed == 1
    file.write_bytes(whole)
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))  # as after mending a disk or a permission
    again = run(images, path)
    assert (again.computed, again.failed) == (0, 1)
    mended = run(images, path, retry_failed=True)
    assert (mended.computed, mended.failed) == (1, 0)
    assert open_cache(path).reasons() == {}
    assert verify(path).complete


def test_too_many_failures_end_the_run_and_keep_what_was_done(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    for file in sorted(images.glob("*/*"))[8:20]:
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(PipelineError, match=r"more than --max-failures 10%.*--retry-failed"):
        run(images, path, max_failures="10%")
    status = open_cache(path).status
    assert (status[:8] == Status.DONE).all()
    assert 0 < (status > Status.DONE).sum() < 12
    assert (status == Status.TODO).any()
    assert run(images, path, max_failures="50%").failed == 12


@pytest.mark.parametrize("text", ["", "-1", "x", "101%", "%", "1.5"])
def test_a_limit_that_is_no_limit_is_refused_before_anything_is_made(text: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="--max-failures"):
        run(images, tmp_path / "c.h5", max_failures=text)
    assert not (tmp_path / "c.h5").exists()


def test_other_versions_are_warned_of(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.stages import extract as module

    path, said = tmp_path / "c.h5", list[str]()
    files = sorted(images.glob("*/*"))
    files[0].rename(tmp_path / "away.png")
    run(images, path)
    run(images, path, say=said.append)
    assert said == []
    (tmp_path / "away.png").rename(files[0])
    now = {"pillow": "99.0"}
    real = module._versions
    monkeypatch.setattr(module, "_versions", lambda engine: real(engine) | now)
    run(images, path, say=said.append)
    assert len(said) == 1
    assert "now 99.0" in said[0]


def test_a_second_writer_is_refused_before_it_touches_anything(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    run(images, path)
    before = path.read_bytes()
    with write_lock(path), pytest.raises(LockedError, match="is being written by"):
        run(images, path)
    assert path.read_bytes() == before


COMMAND = [sys.executable, "-m", "pipeline", "extract"]
OPTIONS = [
    "--backbone",
    "timm/test_vit",
    "--weights",
    "random",
    "--engine",
    "torch",
    "--precision",
    "float32",
    "--workers",
    "1",
]


def start(images: Path, path: Path) -> subprocess.Popen[str]:
    command = [*COMMAND, str(images), "-o", str(path), *OPTIONS]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def many(images: Path, count: int) -> None:
    """Fill a folder with so many images that a run takes a while."""
    data = sorted(images.glob("*/*.jpg"))[0].read_bytes()
    for number in range(count):
        (images / "ant" / f"copy{number:05d}.jpg").write_bytes(data + number.to_bytes(4, "little"))


def wait_for_rows(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not path.exists() or not (open_cache(path).status == 1).any():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_commit_soon_and_the_same_command_goes_on(
    signum: signal.Signals, code: int, images: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c.h5"
    many(images, 6000)
    with start(images, path) as process:
        wait_for_rows(path, process)
        before = processor_time(process.pid) + processor_time_of_ended()
        process.send_signal(signum)
        assert process.wait(timeout=120) == code
        assert processor_time_of_ended() - before < 5
        assert process.stderr is not None
        assert "the same command resumes" in process.stderr.read()
    cache = open_cache(path)
    done = int((cache.status == 1).sum())
    assert 0 < done < len(cache)
    found = verify(path)
    assert (found.done, found.uncommitted) == (done, 0)
    assert np.isfinite(cache.embeddings[cache.status == 1]).all()


TWO_SIGNALS = """
import sys, time
from pipeline.cli.signals import stop_on_signal
with stop_on_signal():
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_the_process_at_once(signum: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TWO_SIGNALS], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signum)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        process.send_signal(signum)
        assert process.wait(timeout=30) == code  # it would sleep for 60 s


def test_a_stop_while_the_archive_is_compared_changes_nothing(images: Path, tmp_path: Path) -> None:
    path, stop = tmp_path / "c.h5", threading.Event()
    run(images, path)
    before = path.read_bytes()
    for file in images.glob("*/*"):
        os.utime(file)
    stop.set()
    summary = extract(str(images), path, ExtractSettings(run=RUN), stop=stop)
    assert summary.stopped
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir() if file.suffix in (".new", ".part", ".lock")] == []


def test_a_run_without_work_names_no_engine(images: Path, tmp_path: Path) -> None:
    options = ["-o", tmp_path / "c.h5", "--engine", "torch", "--precision", "float32", "--workers", "1"]
    assert " images/s, on " in run_command("extract", images, *options).stderr
    said = run_command("extract", images, *options).stderr
    assert re.search(r"24 of 24 images done \(0 now, 0 failed\) in \d+\.\d s$", said, re.MULTILINE)


def test_a_name_for_every_shard_needs_a_shard(images: Path, tmp_path: Path) -> None:
    ran = run_command("extract", images, "-o", tmp_path / "c-{shard}.h5")
    assert (ran.exit_code, ran.stderr.count("\n")) == (1, 1)
    assert "add --shard I/N" in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
