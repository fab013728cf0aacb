"""One read of one version of a remote file, by each store's own client.

A read says which version it wants where the store understands that (S3, Google Cloud Storage, Azure), and reports which
one it got, so that a file that was replaced is noticed by the read itself. fsspec's own `cat_file` does neither.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.sources.objects import OBJECT_STORES, is_plain, objects_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

REPLACED = 412
"""HTTP's status for a read of a version that is no more."""
_TOTAL = re.compile(r"bytes (\d+)-\d+/(\d+)")


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
    """

    data: bytes
    version: str = ""
    total: int = -1


class WithoutRangesError(Exception):
    """A server that sends whole files only."""


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
    objects = None
    if protocol in OBJECT_STORES and wanted.size:
        bucket, key, named = fs.split_path(wanted.path)
        if not named and is_plain(key):
            objects = objects_of(fs, protocol, bucket, timeout)
        found = objects and objects.read(key, wanted.version, wanted.offset, wanted.size)
        if found:
            return Answer(*found)

    async def limited() -> Answer:
        return await asyncio.wait_for(read(fs, wanted), timeout)  # ends the request; fsspec's time-out leaves it

    from fsspec.asyn import sync  # keeps fsspec out of local runs

    answer: Answer = sync(fs.loop, limited)
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
    return Answer(data, _bare(answer.get("ETag", "")), _total(answer.get("ContentRange"), answer["ContentLength"]))


async def _google(fs: Any, wanted: Wanted) -> Answer:
    condition = {"ifGenerationMatch": wanted.version} if wanted.version else {}
    headers, data = await fs._call("GET", fs.url(wanted.path), headers=wanted.range, **condition)
    return Answer(
        data, headers.get("x-goog-generation", ""), _total(headers.get("Content-Range"), headers.get("Content-Length"))
    )


async def _azure(fs: Any, wanted: Wanted) -> Answer:
    from azure.core import MatchConditions  # an extra

    container, name, named = fs.split_path(wanted.path)
    asked: dict[str, Any] = {"version_id": named} if named else {}
    if wanted.version:
        asked |= {"etag": f'"{wanted.version}"', "match_condition": MatchConditions.IfNotModified}
    if wanted.size >= 0:
        asked |= {"offset": wanted.offset, "length": wanted.size}
    async with fs.service_client.get_blob_client(container=container, blob=name) as client:
        stream = await client.download_blob(**asked)
        data = await stream.readall()
    found = stream.properties
    return Answer(data, _bare(found.etag or ""), _total(found.content_range, found.size))


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
        total = _total(answer.headers.get("Content-Range"), answer.headers.get("Content-Length"))
        if wanted.range and answer.status != 206 and (wanted.offset, wanted.size) != (0, total):
            raise WithoutRangesError("the server sends whole files only: fetch the archive first")
        # Of another version the bytes are of no use.
        replaced = wanted.version and found and found != wanted.version
        return Answer(b"" if replaced else await answer.read(), found, total)


def _hugging_face(fs: Any, wanted: Wanted, timeout: float) -> Answer:
    from huggingface_hub import get_session  # takes half a second
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    headers = {**build_hf_headers(token=fs.token), "Accept-Encoding": "identity", **wanted.range}
    answer: Any = get_session().get(fs.url(wanted.path), headers=headers, timeout=timeout)
    hf_raise_for_status(answer)
    # The first answer names the version; it leads to the bytes of exactly this one.
    first = (answer.history or [answer])[0].headers
    found = first.get("X-Linked-Etag") or first.get("ETag") or ""
    total = _total(answer.headers.get("Content-Range"), answer.headers.get("Content-Length"))
    return Answer(answer.content, _bare(found), total)


def _any(fs: Any, wanted: Wanted, timeout: float) -> Answer:
    span = {} if wanted.size < 0 else {"start": wanted.offset, "end": wanted.offset + wanted.size}
    # The clients that run in an event loop take a time-out; the others have one of their own.
    limit = {"timeout": timeout} if getattr(fs, "async_impl", False) else {}
    return Answer(bytes(fs.cat_file(wanted.path, **span, **limit)))


def _bare(tag: str) -> str:
    """Return a tag without its quotes, which some listings leave out."""
    return tag.removeprefix("W/").strip('"')


def _total(content_range: str | None, length: Any) -> int:
    """Return how long the whole file is, by the range that was sent, or else by the length of the answer."""
    part = _TOTAL.match(content_range or "")
    if part is not None:
        return int(part[2])
    return -1 if length is None else int(length)


_READS: dict[str, Callable[[Any, Wanted], Coroutine[Any, Any, Answer]]] = {
    **dict.fromkeys(("s3", "s3a"), _s3),
    **dict.fromkeys(("gs", "gcs"), _google),
    **dict.fromkeys(("az", "abfs", "abfss"), _azure),
    **dict.fromkeys(("http", "https"), _http),
}
