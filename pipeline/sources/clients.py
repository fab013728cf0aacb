"""One read of one version of a remote file, by each store's own client.

A read says which version it wants where the store understands that (S3, Google Cloud Storage, Azure), and reports which
one it got, so that a file that was replaced is noticed by the read itself. fsspec's own `cat_file` does neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.sources.objects import OBJECT_STORES, is_plain, objects_of
from pipeline.sources.retries import LEAST_ATTEMPT, may_pass

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping

REPLACED = 412
"""HTTP's status for a read of a version that is no more."""
SILENCE_S = 30
"""Seconds without an answer after which a request of a listing is given up."""
_GOOGLE, _AZURE = ("gs", "gcs"), ("az", "abfs", "abfss")
_LIMITS: dict[str, dict[str, Any]] = {
    **{name: {"requests_timeout": SILENCE_S} for name in _GOOGLE},
    **{name: {"connection_timeout": SILENCE_S, "read_timeout": SILENCE_S} for name in _AZURE},
}
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be read.

    Attributes
    ----------
    path : str
        Within the store.
    version : str
        As `version_of` gives it; empty for any.
    offset, size : int
        Of the bytes; a size of -1 is the whole file.
    """

    path: str
    version: str = ""
    offset: int = 0
    size: int = -1

    @property
    def range(self) -> dict[str, str]:
        """The header that asks for it; empty for the whole file."""
        return {} if self.size < 0 else {"Range": f"bytes={self.offset}-{self.offset + self.size - 1}"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a store sent.

    Attributes
    ----------
    data : bytes
    version : str
        Of the file that they are from; empty where the store does not say.
    total : int
        Bytes of the whole file; -1 where the store does not say.
    start : int
        Where in the file the data begin; -1 where the store does not say.
    """

    data: bytes
    version: str = ""
    total: int = -1
    start: int = -1


class WithoutRangesError(Exception):
    """A server that sends whole files only."""


class FailedListingError(Exception):
    """A folder that could not be listed; no `OSError`, which fsspec takes for an empty folder."""


def version_of(info: Mapping[str, Any]) -> str:
    """Return what identifies the version of a file, from what its store says of it; empty where nothing does."""
    large = info.get("lfs")  # Hugging Face
    if large:
        return str(large["sha256"] if "sha256" in large else large["oid"])
    for name in ("generation", "ETag", "etag", "blob_id", "Last-Modified"):
        if info.get(name):
            return _bare(str(info[name]))
    return ""


def number_of(version: str) -> int:
    """Return a number that differs where versions do; 0 for none."""
    if not version:
        return 0
    return int.from_bytes(hashlib.blake2b(version.encode(), digest_size=8).digest(), "little") >> 1


def info_of(fs: Any, protocol: str, path: str, timeout: float) -> Mapping[str, Any]:
    """Return within ``timeout`` seconds what a store says of a file; raises whatever the client raises.

    Some clients would repeat the question by themselves, and wait longer. Over HTTP, fsspec takes the headers of a
    download where a question for the headers alone failed, and those tell less of what is wrong with it.
    """
    found: Mapping[str, Any]
    if not getattr(fs, "async_impl", False):
        found = fs.info(path)
        return found
    from fsspec.asyn import sync  # keeps fsspec out of local runs

    if protocol in ("http", "https"):
        from fsspec.implementations.http import _file_info

        async def ask() -> dict[str, Any]:
            session = await fs.set_session()
            headers: dict[str, Any] = await _file_info(fs.encode_url(path), session, size_policy="head", **fs.kwargs)
            return headers

        try:
            return {"name": path, "size": None, "type": "file", **sync(fs.loop, _within, ask, timeout)}
        except Exception as error:
            if may_pass(error):
                raise
            # A server that does not answer such questions, or has no such file.
    found = sync(fs.loop, _within, lambda: fs._info(path), timeout)
    return found


async def _within(question: Callable[[], Coroutine[Any, Any, _Result]], seconds: float) -> _Result:
    """Ask, and give up after a time; fsspec's own time-out leaves the request running."""
    return await asyncio.wait_for(question(), seconds)


def settings_of(protocol: str) -> dict[str, Any]:
    """Return settings by which fsspec's client of a protocol gives up a request that is not answered.

    Reads have a limit of their own. A listing may take long in all, so that each of its requests has one; some clients
    would wait five minutes for it. What the user has set in fsspec's configuration stays.
    """
    from fsspec.config import conf

    users: Mapping[str, Any] = conf.get(protocol, {})
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout  # an extra

        limit = ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)
        return {"client_kwargs": {"timeout": limit, **users.get("client_kwargs", {})}}
    ours = _LIMITS.get(protocol, {})
    return {name: value for name, value in ours.items() if name not in users}


def raise_failed_listings(fs: Any) -> Any:
    """Have a file system raise `FailedListingError` where it could not list a folder; return it.

    fsspec leaves such a folder out of what it finds, with all files below it.
    """
    name = "_ls" if getattr(fs, "async_impl", False) else "ls"
    listing = getattr(fs, name)
    if name in vars(fs):  # fsspec keeps its file systems: done before
        return fs

    async def later(path: str, *args: Any, **options: Any) -> Any:
        with _failed_listings():
            return await listing(path, *args, **options)

    def now(path: str, *args: Any, **options: Any) -> Any:
        with _failed_listings():
            return listing(path, *args, **options)

    setattr(fs, name, later if name == "_ls" else now)
    return fs


@contextlib.contextmanager
def _failed_listings() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise FailedListingError(str(error) or type(error).__name__) from error


def fetch(fs: Any, protocol: str, wanted: Wanted, timeout: float) -> Answer:
    """Read from a store, once.

    Parameters
    ----------
    fs : fsspec file system
    protocol : str
        Of its URLs.
    wanted : Wanted
    timeout : float
        Seconds.

    Raises
    ------
    Exception
        Whatever the client raises; an HTTP status of `REPLACED` says that there is another version now.
    """
    if protocol == "hf":
        return _hugging_face(fs, wanted, timeout)
    read = _READS.get(protocol)
    if read is None:
        return _any(fs, wanted, timeout)
    objects, started = None, time.monotonic()
    if protocol in OBJECT_STORES and wanted.size:
        bucket, key, named = fs.split_path(wanted.path)
        if not named and is_plain(key):
            objects = objects_of(fs, protocol, bucket, timeout)
        found = objects and objects.read(key, wanted.version, wanted.offset, wanted.size)
        if found:
            return Answer(*found)

    from fsspec.asyn import sync  # as above

    left = timeout - (time.monotonic() - started)  # another client may have tried
    answer: Answer = sync(fs.loop, _within, lambda: read(fs, wanted), max(left, LEAST_ATTEMPT))
    if objects is not None:
        objects.served_otherwise()
    return answer


async def _s3(fs: Any, wanted: Wanted) -> Answer:
    bucket, key, named = fs.split_path(wanted.path)
    asked = {"Bucket": bucket, "Key": key, **wanted.range}
    if wanted.version:
        asked["IfMatch"] = f'"{wanted.version}"'
    if named:
        asked["VersionId"] = named
    answer = await fs._call_s3("get_object", **asked)
    body = answer["Body"]
    try:
        data = await body.read()
    finally:
        body.close()
    return _answer(data, answer.get("ETag"), answer.get("ContentRange"), answer.get("ContentLength"))


async def _google(fs: Any, wanted: Wanted) -> Answer:
    condition = {"ifGenerationMatch": wanted.version} if wanted.version else {}
    headers, data = await fs._call("GET", fs.url(wanted.path), headers=wanted.range, **condition)
    version = headers.get("x-goog-generation")
    return _answer(data, version, headers.get("Content-Range"), headers.get("Content-Length"))


async def _azure(fs: Any, wanted: Wanted) -> Answer:
    from azure.core import MatchConditions  # an extra

    container, name, named = fs.split_path(wanted.path)
    # The client would wait 15 s before it repeats a request; `Patience` repeats it sooner.
    asked: dict[str, Any] = {"retry_total": 0, **({"version_id": named} if named else {})}
    if wanted.version:
        asked |= {"etag": f'"{wanted.version}"', "match_condition": MatchConditions.IfNotModified}
    if wanted.size >= 0:
        asked |= {"offset": wanted.offset, "length": wanted.size}
    async with fs.service_client.get_blob_client(container=container, blob=name) as client:
        stream = await client.download_blob(**asked)
        data = await stream.readall()
    found = stream.properties
    return _answer(data, found.etag, found.content_range, found.size)


async def _http(fs: Any, wanted: Wanted) -> Answer:
    settings = dict(fs.kwargs)
    # A packed answer would have another length, and perhaps another tag.
    headers = {**settings.pop("headers", {}), "Accept-Encoding": "identity", **wanted.range}
    session = await fs.set_session()
    async with session.get(fs.encode_url(wanted.path), headers=headers, **settings) as answer:
        if answer.status == 404:
            raise FileNotFoundError(wanted.path)
        answer.raise_for_status()
        found = version_of(answer.headers)
        span, length = answer.headers.get("Content-Range"), answer.headers.get("Content-Length")
        total = _answer(b"", found, span, length).total
        if wanted.range and answer.status != 206 and (wanted.offset, wanted.size) != (0, total):
            raise WithoutRangesError("the server sends whole files only: fetch the archive first")
        # Of another version the bytes are of no use.
        replaced = wanted.version and found and found != wanted.version
        return _answer(b"" if replaced else await answer.read(), found, span, length)


def _hugging_face(fs: Any, wanted: Wanted, timeout: float) -> Answer:
    from huggingface_hub import get_session  # takes half a second
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    headers = {**build_hf_headers(token=fs.token), "Accept-Encoding": "identity", **wanted.range}
    answer: Any = get_session().get(fs.url(wanted.path), headers=headers, timeout=timeout)
    hf_raise_for_status(answer)
    # The first answer names the version; it leads to the bytes of exactly this one.
    first = (answer.history or [answer])[0].headers
    found = first.get("X-Linked-Etag") or first.get("ETag") or ""
    return _answer(answer.content, found, answer.headers.get("Content-Range"), answer.headers.get("Content-Length"))


def _any(fs: Any, wanted: Wanted, timeout: float) -> Answer:
    span = {} if wanted.size < 0 else {"start": wanted.offset, "end": wanted.offset + wanted.size}
    # The clients that run in an event loop take a time-out; the others have one of their own.
    limit = {"timeout": timeout} if getattr(fs, "async_impl", False) else {}
    return Answer(bytes(fs.cat_file(wanted.path, **span, **limit)))


def _bare(tag: str) -> str:
    """Return a tag without its quotes, which some listings leave out."""
    return tag.removeprefix("W/").strip('"')


def _answer(data: bytes, version: str | None, content_range: str | None, length: Any) -> Answer:
    """Return an answer; of the whole file's length by the range that was sent, or else by the length of the answer."""
    span = _RANGE.match(content_range or "")
    start, total = (int(span[1]), int(span[2])) if span else (-1, -1 if length is None else int(length))
    return Answer(data, _bare(version or ""), total, start)


_READS: dict[str, Callable[[Any, Wanted], Coroutine[Any, Any, Answer]]] = {
    **dict.fromkeys(("s3", "s3a"), _s3),
    **dict.fromkeys(_GOOGLE, _google),
    **dict.fromkeys(_AZURE, _azure),
    **dict.fromkeys(("http", "https"), _http),
}
