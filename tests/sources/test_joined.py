"""Neighbours that one request brings are the bytes that each read alone gives, of the version that was listed."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.core.items import Changed
from pipeline.sources import retries
from pipeline.sources.opening import open_source
from tests.faulty_reader import picture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = [f"{letter}/{number}.png" for letter in "ab" for number in range(4)]
PICTURES = [picture(number) for number in range(len(NAMES))]


@dataclass
class Served:
    """A server's files, the ranges that it was asked for, and how many of the next requests it turns away."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: list[str] = field(default_factory=list)
    busy: int = 0
    url: str = ""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Served]:
    about = Served()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            data = about.files[self.path]
            asked = self.headers.get("Range")
            if asked and self.command == "GET":
                about.ranges.append(asked)
                if about.busy:
                    about.busy -= 1
                    self.send_response(503)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
            start, _, end = (asked or "bytes=0-").removeprefix("bytes=").partition("-")
            part = data[int(start) : int(end or len(data)) + 1]
            self.send_response(206 if asked else 200)
            self.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(part)))
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{int(start) + len(part) - 1}/{len(data)}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(part)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.001)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        about.url = f"http://127.0.0.1:{running.server_port}"
        yield about
        running.shutdown()


def packed(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=file, mode="w") as tar:
            for name, data in zip(NAMES, PICTURES, strict=True):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    else:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in zip(NAMES, PICTURES, strict=True):
                archive.writestr(name, data)
    return file.getvalue()


def opened(served: Served, kind: str) -> tuple[Any, list[Any]]:
    """Serve an archive; return its reader and the locators of its members, in the order of ``PICTURES``."""
    served.files[f"/x.{kind}"] = packed(kind)
    source = open_source(f"{served.url}/x.{kind}")
    served.ranges.clear()
    return source.patient_reader(), [source.locator(i) for i in range(len(source))]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_one_request_brings_the_bytes_of_all(kind: str, served: Served) -> None:
    reader, locators = opened(served, kind)
    spans = [reader.span(locator) for locator in locators]
    assert all(0 <= start < end <= len(served.files[f"/x.{kind}"]) for _, start, end in spans)
    assert reader.read_together(locators) == PICTURES
    assert served.ranges == [f"bytes={spans[0][1]}-{spans[-1][2] - 1}"]
    assert [reader(locator) for locator in locators] == PICTURES


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_of_another_version_no_part_is_given(kind: str, served: Served) -> None:
    reader, locators = opened(served, kind)
    data = served.files[f"/x.{kind}"]
    served.files[f"/x.{kind}"] = data[:-1] + b"x"  # of the same length
    found = reader.read_together(locators)
    assert [type(one) for one in found] == [Changed] * len(NAMES)


def test_a_damaged_part_is_its_own_error(served: Served) -> None:
    reader, locators = opened(served, "zip")
    wrong = (*locators[2][:5], locators[2][5] ^ 1, locators[2][6])  # its checksum
    found = reader.read_together([*locators[:2], wrong, *locators[3:]])
    assert "checksum" in str(found[2])
    assert [*found[:2], *found[3:]] == [*PICTURES[:2], *PICTURES[3:]]


def test_a_request_that_is_turned_away_is_repeated(served: Served) -> None:
    reader, locators = opened(served, "tar")
    served.busy = 2
    assert reader.read_together(locators) == PICTURES
    assert len(served.ranges) == 3
    served.busy = 1000
    assert {type(one).__name__ for one in reader.read_together(locators)} == {"OutOfReach"}


def test_where_one_request_fails_each_member_is_read_for_itself(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, locators = opened(served, "tar")
    del served.files["/x.tar"]
    found = reader.read_together(locators[:2])
    assert all(isinstance(one, OSError) for one in found)


def test_on_this_machine_and_beyond_the_end_nothing_is_joined(served: Served, tmp_path: Path) -> None:
    reader, locators = opened(served, "tar")
    file, offset, _ = locators[-1]
    assert reader.span((file, offset, len(served.files["/x.tar"]))) is None
    (tmp_path / "x.tar").write_bytes(packed("tar"))
    local = open_source(str(tmp_path / "x.tar"))
    assert local.patient_reader().span(local.locator(0)) is None  # type: ignore[attr-defined]
