"""Reads over a network: what may pass is tried again, within limits; what will not pass is not."""

from __future__ import annotations

import errno
import io
import json
import math
import pickle
import threading
import time
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.cache import open_cache
from pipeline.core.items import OutOfReach, Status
from pipeline.embedding.settings import RunSettings
from pipeline.errors import PipelineError
from pipeline.sources.retries import READ_TIMEOUT, Patience, PatientReader, attempt_left, has_expired, may_pass
from pipeline.stages.extract import ExtractSettings, extract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from PIL import Image

    from pipeline.core.items import Reader


class Answer(Exception):
    """An error of a client, with the status where clients have it."""

    def __init__(self, **facts: Any) -> None:
        super().__init__("answer")
        self.__dict__.update(facts)


class ClientPayloadError(Exception):
    """Named as aiohttp's."""


class FlexibleChecksumError(Exception):
    """Named as botocore's."""


class Code(str, Enum):  # noqa: UP042
    """As Azure's, whose text is not its value."""

    AUTHENTICATION_FAILED = "AuthenticationFailed"


def wrapped(cause: BaseException) -> OSError:
    error = OSError(errno.EIO, "wrapped by a file system")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        Answer(status=503),
        Answer(status=429),
        Answer(response={"ResponseMetadata": {"HTTPStatusCode": 500}}),
        Answer(response=type("Response", (), {"status_code": 504})()),
        Answer(code=502),
        TimeoutError(),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        OSError(errno.EHOSTUNREACH, "no route"),
        ClientPayloadError(),
        wrapped(Answer(status=503)),
        wrapped(ClientPayloadError()),
        wrapped(FlexibleChecksumError()),
        json.JSONDecodeError("Unterminated string", "{", 1),
    ],
)
def test_what_may_pass(error: BaseException) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        Answer(status=404),
        Answer(status=403),
        Answer(response={"ResponseMetadata": {"HTTPStatusCode": 400}, "Error": {"Code": "InvalidRange"}}),
        FileNotFoundError(errno.ENOENT, "gone"),
        PermissionError(errno.EACCES, "not yours"),
        OSError(errno.EIO, "disk"),
        OSError(errno.ESTALE, "the archive changed"),
        ValueError("not an image"),
        wrapped(Answer(status=404)),
    ],
)
def test_what_stays(error: BaseException) -> None:
    assert not may_pass(error)


def test_expired_credentials_are_told_from_missing_rights() -> None:
    expired = Answer(response={"ResponseMetadata": {"HTTPStatusCode": 400}, "Error": {"Code": "ExpiredToken"}})
    assert has_expired(expired)
    assert has_expired(wrapped(Answer(status=401)))
    assert has_expired(Answer(status_code=403, error_code=Code.AUTHENTICATION_FAILED))
    assert not has_expired(Answer(status_code=403, error_code="AuthorizationFailure"))
    assert not has_expired(Answer(status=403))


def failing(errors: list[BaseException]) -> Reader:
    def read(locator: str) -> bytes:
        if errors:
            raise errors.pop(0)
        return locator.encode()

    return read


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the waits that were asked for; none takes time."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def test_waits_grow_and_end(no_waits: list[float]) -> None:
    errors: list[BaseException] = [Answer(status=503)] * 3
    assert PatientReader(failing(errors), Patience(retries=3))("x") == b"x"
    assert [0.25 <= no_waits[0] <= 0.5, 0.5 <= no_waits[1] <= 1, 1 <= no_waits[2] <= 2] == [True] * 3


def test_what_does_not_pass_is_out_of_reach(no_waits: list[float]) -> None:
    with pytest.raises(OutOfReach, match=r"answer \(tried 4 times\)"):
        PatientReader(failing([Answer(status=503)] * 9), Patience(retries=3))("x")
    assert len(no_waits) == 3


def test_a_final_error_is_raised_at_once(no_waits: list[float]) -> None:
    with pytest.raises(FileNotFoundError):
        PatientReader(failing([FileNotFoundError()]), Patience())("x")
    assert no_waits == []


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that lets seconds pass, without any passing."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def pass_(seconds: float) -> None:
        now[0] += seconds

    return pass_


def test_the_time_for_all_attempts_is_limited(no_waits: list[float], passes: Callable[[float], None]) -> None:
    def attempt() -> None:
        passes(20)
        raise TimeoutError

    with pytest.raises(OutOfReach, match="tried 3 times"):
        Patience(retries=8, timeout=45).call(attempt)


def test_a_late_attempt_ends_with_the_time_for_all(no_waits: list[float], passes: Callable[[float], None]) -> None:
    """Else the image would be taken for one that hangs, which no later run tries again."""
    limits: list[int] = []

    def attempt() -> None:
        limits.append(attempt_left())
        passes(20)
        raise TimeoutError

    with pytest.raises(OutOfReach):
        Patience(retries=3, timeout=45.0).call(attempt)
    assert limits == [15, 15, math.ceil(5.0 - no_waits[1])]


def test_all_requests_of_an_attempt_share_its_time(passes: Callable[[float], None]) -> None:
    """A check whether a file has changed may not wait as long again, by the client's own patience."""
    limits: list[int] = []

    def attempt() -> None:
        for seconds in (9.5, 9.5):
            limits.append(attempt_left())
            passes(seconds)

    Patience(timeout=30.0).call(attempt)
    assert limits == [10, 1]
    assert attempt_left() == READ_TIMEOUT


def test_a_patient_reader_travels_to_workers() -> None:
    reader = pickle.loads(pickle.dumps(PatientReader(str.encode, Patience(2, 3.0))))
    assert reader("x") == b"x"
    assert reader.patience == Patience(2, 3.0)


# ---- a server with faults ----


class Faulty(BaseHTTPRequestHandler):
    """Serves PNGs; a fault of the server's list comes before each right answer."""

    faults: dict[str, list[str]]
    images: dict[str, bytes]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        left = self.faults.get(self.path, [])
        fault = left[0] if left[:1] == ["always 503"] else left.pop(0) if left else ""
        if fault.endswith("503"):
            self.send_error(503)
        elif fault == "reset":
            self.close_connection = True
            self.connection.shutdown(2)
        else:
            self.answer(body=True, part=fault == "truncated")

    def answer(self, *, body: bool, part: bool = False) -> None:
        data = self.images.get(self.path)
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if part else data)
            self.close_connection = part

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(crops: list[Image.Image]) -> Iterator[Callable[[dict[str, list[str]]], str]]:
    """Return a function: faults by path → the URL of six images."""
    images = {}
    for i, crop in enumerate(crops[:6]):
        data = io.BytesIO()
        crop.resize((40, 40)).save(data, "PNG")
        images[f"/{i}.png"] = data.getvalue()
    handler = type("Handler", (Faulty,), {"images": images, "faults": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()

        def serve(faults: dict[str, list[str]]) -> str:
            handler.faults = faults  # type: ignore[attr-defined]
            return f"http://127.0.0.1:{running.server_port}"

        yield serve
        running.shutdown()


def table(folder: Path, url: str, count: int = 6) -> str:
    (folder / "t.csv").write_text("path\n" + "".join(f"{url}/{i}.png\n" for i in range(count)))
    return str(folder / "t.csv")


SETTINGS = ExtractSettings(
    backbone="timm/test_efficientnet",
    weights="random",
    allow_missing=True,
    run=RunSettings(engine="torch", precision="float32", workers=1),
    retries=1,
    read_timeout=20,
)


@pytest.mark.slow
def test_every_row_is_right_or_out_of_reach_and_the_next_run_completes(
    server: Callable[[dict[str, list[str]]], str], tmp_path: Path
) -> None:
    faults = {"/0.png": ["503"], "/1.png": ["reset"], "/2.png": ["truncated"], "/3.png": ["always 503"]}
    url, said = server(faults), list[str]()
    summary = extract(table(tmp_path, url), tmp_path / "c.h5", SETTINGS, say=said.append)
    cache = open_cache(tmp_path / "c.h5")
    assert summary.failures == {"out_of_reach": 1}
    assert [Status(code) for code in cache.status].count(Status.OUT_OF_REACH) == 1
    assert sum("out of reach" in line for line in said) == 1
    assert "503" in next(line for line in said if "out of reach" in line)
    server({})
    summary = extract(table(tmp_path, url), tmp_path / "c.h5", SETTINGS)
    assert (summary.computed, summary.failed) == (1, 0)
    plain = extract(table(tmp_path, url), tmp_path / "plain.h5", SETTINGS)
    assert plain.failed == 0
    rows = open_cache(tmp_path / "c.h5"), open_cache(tmp_path / "plain.h5")
    assert (rows[0].layers["penultimate"][:] == rows[1].layers["penultimate"][:]).all()


def test_a_missing_image_is_not_waited_for(server: Callable[[dict[str, list[str]]], str], tmp_path: Path) -> None:
    summary = extract(table(tmp_path, server({}), count=7), tmp_path / "c.h5", SETTINGS)
    assert summary.failures == {"unreadable": 1}


def test_images_out_of_reach_have_a_limit_of_their_own(
    server: Callable[[dict[str, list[str]]], str], tmp_path: Path
) -> None:
    from dataclasses import replace

    url = server({f"/{i}.png": ["always 503"] for i in range(3)})
    settings = replace(SETTINGS, retries=0, max_failures="2")
    with pytest.raises(PipelineError, match="3 of 6 images were out of reach, more than --max-failures 2"):
        extract(table(tmp_path, url), tmp_path / "c.h5", settings)
