"""Extraction from every kind of store while it fails: a row is right or out of reach, and the next run completes.

The stores are servers on the loopback interface behind a proxy that injects the faults; see `tests.faults.stores`.
"""

from __future__ import annotations

import io
import threading
from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from pipeline import open_cache
from pipeline.core.items import Status
from pipeline.embedding.settings import RunSettings
from pipeline.errors import PipelineError
from pipeline.stages.extract import ExtractSettings, extract
from scripts.source_variants import make_encoded_hdf5, make_folder, make_parquet, make_tars, make_zip
from scripts.trivial_network import trivial_network
from tests.faults.fault_proxy import HANGS
from tests.faults.stores import NAMES, Faulty, faulty_store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SETTINGS = ExtractSettings(run=RunSettings(workers=2), retries=3, read_timeout=30, allow_removed="100%")
KINDS = {
    "folder": "folder/",
    "tar": "tars/shard-{0..3}.tar",
    "zip": "images.zip",
    "parquet": "images.parquet",
    "hdf5": "images.h5",
}
SIDE = 24
RATE = 0.35
FAULTS = 420
"""Of each store, in the long form."""


def images(count: int, version: int) -> dict[str, bytes]:
    """Return images of equal lengths whose pixels tell the number and the version."""
    found = {}
    for n in range(count):
        file = io.BytesIO()
        colour = (n % 256, n // 256, version % 256)
        Image.new("RGB", (SIDE, SIDE), colour).save(file, "BMP")
        found[f"{'abc'[n % 3]}/{n:04d}.bmp"] = file.getvalue()
    return dict(sorted(found.items()))


def written(folder: Path, kind: str, content: dict[str, bytes]) -> dict[str, bytes]:
    """Write images as one kind of source into a folder; return all files there."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        make_folder(folder / "folder", content)
    elif kind == "tar":
        make_tars(folder / "tars", content, 4)
    elif kind == "zip":
        make_zip(folder / KINDS[kind], content, deflated=False)
    elif kind == "parquet":
        make_parquet(folder / KINDS[kind], content, hugging_face=True)
    else:
        make_encoded_hdf5(folder / KINDS[kind], content)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def own_indexes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "indexes"))
    with trivial_network():
        yield


class Rows:
    """What extraction from a local copy gives."""

    def __init__(self, location: str, cache: Path) -> None:
        extract(location, cache, SETTINGS)
        found = open_cache(cache)
        self.of = dict(zip(map(bytes, found.items.keys), found.embeddings[:], strict=True))
        self.hashes = dict(zip(map(bytes, found.items.keys), map(bytes, found.content_hash[:]), strict=True))

    def check(self, cache: Path) -> Counter[str]:
        """Return how many rows have which status; fails where one is wrong."""
        found = open_cache(cache)
        assert {bytes(key) for key in found.items.keys} == set(self.of)
        counts: Counter[str] = Counter()
        for key, status, embedding, digest in zip(
            map(bytes, found.items.keys), found.status[:], found.embeddings[:], found.content_hash[:], strict=True
        ):
            counts[Status(status).name] += 1
            if status == Status.DONE:
                assert bytes(digest) == self.hashes[key], key
                assert np.array_equal(embedding, self.of[key]), key
        return counts


def why(cache: Path) -> str:
    """Return the failures that a run recorded."""
    record = cache.with_name(f"{cache.name}.failures.jsonl")
    return record.read_text() if record.exists() else "nothing recorded"


def disturbed_run(store: Faulty, kind: str, right: Rows, cache: Path) -> Counter[str]:
    """Extract under faults, then without; return what the first run gave."""
    location, reasons = f"{store.url}/{KINDS[kind]}", list[str]()
    store.proxy.rate = RATE
    try:
        extract(location, cache, SETTINGS, say=reasons.append)
    except PipelineError as error:  # its list could not be had: nothing was written
        reasons.append(str(error))
    finally:
        store.proxy.rate = 0.0
    counts = right.check(cache) if cache.exists() else Counter(refused=1)
    assert set(counts) <= {"DONE", "OUT_OF_REACH", "refused"}, (counts, reasons, why(cache))
    summary = extract(location, cache, SETTINGS)
    assert summary.failed == 0
    assert set(right.check(cache)) == {"DONE"}
    return counts


def run_of_few(name: str, kind: str, tmp_path: Path, *, seed: int, faults: Sequence[str] = ()) -> None:
    """Extract 24 images from a store that fails, by faults of some kinds or of all that end at once."""
    content = images(24, 0)
    files = written(tmp_path / "local", kind, content)
    right = Rows(str(tmp_path / "local" / KINDS[kind]), tmp_path / "right.h5")
    with faulty_store(name, tmp_path, seed=seed) as store:
        store.put(files)
        store.proxy.kinds = faults or store.proxy.kinds
        counts = disturbed_run(store, kind, right, tmp_path / "c.h5")
        assert sum(store.proxy.counts.values()) >= 1
    print(f"\n{name} {kind}: {dict(counts)}; {dict(store.proxy.counts)}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "parquet"])
@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_right_or_out_of_reach(name: str, kind: str, tmp_path: Path) -> None:
    run_of_few(name, kind, tmp_path, seed=1)


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("name", NAMES)
def test_a_store_that_falls_silent_costs_its_time_and_no_more(name: str, kind: str, tmp_path: Path) -> None:
    run_of_few(name, kind, tmp_path, seed=4, faults=HANGS)


@pytest.mark.faults
@pytest.mark.parametrize("name", NAMES)
def test_hundreds_of_faults_give_no_wrong_row(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, faults, runs = Counter[str](), 0, 0
    content = images(60, 0)
    with faulty_store(name, tmp_path, seed=2) as store:
        right = {}
        for kind in KINDS:
            store.put(written(tmp_path / kind, kind, content))
            right[kind] = Rows(str(tmp_path / kind / KINDS[kind]), tmp_path / f"{kind}.h5")
        while (faults := sum(store.proxy.counts.values())) < FAULTS:
            kind = [*KINDS][runs % len(KINDS)] if runs < len(KINDS) else "folder"
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"indexes-{runs}"))
            rows += disturbed_run(store, kind, right[kind], tmp_path / f"c{runs}.h5")
            runs += 1
        counts = dict(store.proxy.counts)
    print(f"\n{name}: {faults} faults in {runs} runs: {counts}; rows: {dict(rows)}, none wrong")


class ReplacedOnce:
    """Replaces each file of a store by a new version when it is read for the nth time."""

    def __init__(self, store: Faulty, new: dict[str, bytes], nth: int) -> None:
        self._store, self._new, self._nth = store, new, nth
        self._lock, self._reads = threading.Lock(), Counter[str]()
        self.done: set[str] = set()

    def __call__(self, request: str) -> None:
        path = unquote(request).partition("?")[0]
        if "/storage/v1/" in path and "alt=media" not in request:
            return  # Google's metadata of a file have nearly its address
        with self._lock:
            file = next((name for name in self._new if path.endswith("/" + name)), "")
            self._reads[file] += 1
            if file and file not in self.done and self._reads[file] >= self._nth:
                self.done.add(file)
                self._store.put({file: self._new[file]})


# A page of links over HTTP tells no versions.
@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "kind", "nth"),
    [
        *((name, "folder", 1) for name in NAMES if name != "http"),
        *((name, "tar", nth) for name in NAMES for nth in (2, 3)),  # neighbours are read together
        *((name, kind, 4) for name in NAMES for kind in ("zip", "parquet")),
    ],
)
def test_an_object_replaced_during_the_run_gives_no_row_of_another_version(
    name: str, kind: str, nth: int, tmp_path: Path
) -> None:
    contents = [images(44, version) for version in range(2)]
    files = [written(tmp_path / f"v{version}", kind, content) for version, content in enumerate(contents)]
    assert kind == "parquet" or {path: len(data) for path, data in files[0].items()} == {
        path: len(data) for path, data in files[1].items()
    }
    old, new = (Rows(str(tmp_path / f"v{version}" / KINDS[kind]), tmp_path / f"v{version}.h5") for version in range(2))
    rows = Counter[str]()
    with faulty_store(name, tmp_path, seed=3) as store:
        store.put(files[0])
        location, replace = f"{store.url}/{KINDS[kind]}", ReplacedOnce(store, files[1], nth)
        store.proxy.before_data = replace
        try:
            extract(location, tmp_path / "c.h5", SETTINGS)
            rows = old.check(tmp_path / "c.h5")
        except PipelineError as error:  # while it was listed
            said = str(error)
        else:
            said = "changed" if "CHANGED" in rows else "done"
        store.proxy.before_data = lambda path: None
        assert "changed" in said or set(rows) == {"DONE"}, said
        assert replace.done
        store.put(files[1])
        extract(location, tmp_path / "c.h5", SETTINGS)
        assert set(new.check(tmp_path / "c.h5")) == {"DONE"}
    print(f"\n{name} {kind}: {len(replace.done)} replaced; rows: {dict(rows)}, none of another version")
