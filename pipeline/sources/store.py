"""Stores of bytes: local files, or an fsspec URL, with one interface for listing and ranged reads."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from pipeline.core.items import Changed
from pipeline.errors import SourceError, first_line
from pipeline.sources.base import MAX_FILE_BYTES, FileReader
from pipeline.sources.clients import (
    REPLACED,
    Wanted,
    WithoutRangesError,
    fetch,
    info_of,
    number_of,
    raise_failed_listings,
    settings_of,
    version_of,
)
from pipeline.sources.local_glob import files_like
from pipeline.sources.range_file import RangeFile
from pipeline.sources.retries import Patience, attempt_left, has_expired, has_status, may_pass
from pipeline.sources.urls import is_url, public

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_Answer = TypeVar("_Answer")

OPEN_FILES = 128
"""Files kept open for reading by range; further shards are opened again at each use."""
EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "azure"),
    **dict.fromkeys(("http", "https"), "http"),
}
"""Protocol → the extra of this project that installs what it needs."""
IN_PROCESS = ("memory",)
"""Protocols whose files only the writing process can read."""


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was listed.

    Attributes
    ----------
    path : str
        The path within its store.
    size : int
        Bytes; -1 where the store does not give it.
    stamp : int
        Changes when the file does: its time in ns, or a number made from its ETag; -1 where the store has neither.
    version : str
        What reads ask for; see `pipeline.sources.clients.version_of`.
    """

    path: str
    size: int = -1
    stamp: int = -1
    version: str = ""


class Store(ABC):
    """A place that files are read from; picklable, so that decode workers can read too."""

    protocol = "file"

    @abstractmethod
    def look(self, path: str) -> File:
        """Return size and stamp of a file; raises `OSError` where there is none."""

    @abstractmethod
    def is_folder(self, path: str) -> bool:
        """Return whether there is a folder at ``path``."""

    @abstractmethod
    def glob(self, pattern: str) -> list[str]:
        """Return the files that match, sorted."""

    @abstractmethod
    def open(self, file: File, patience: Patience | None = None) -> BinaryIO:
        """Open a file of this version for reading, with seek; its reads are repeated as the patience says."""

    @abstractmethod
    def read(self, file: File, offset: int, size: int) -> bytes:
        """Return exactly ``size`` bytes from ``offset``; raises `OSError`, `Changed` where the file has changed."""

    @abstractmethod
    def read_all(self, file: File) -> bytes:
        """Return a whole file of `MAX_FILE_BYTES` at most; raises `OSError`."""

    @abstractmethod
    def address(self, path: str) -> str:
        """Return an address of the path that is valid in any folder, without credentials."""

    def head(self, file: File, size: int) -> bytes:
        """Return up to ``size`` bytes from the start; raises `OSError`."""
        with self.open(file) as opened:
            return opened.read(size)


@dataclass(frozen=True, slots=True)
class LocalStore(Store):
    """The file system of this machine."""

    def look(self, path: str) -> File:
        """Return the absolute path, for processes that work in another folder, size and time."""
        info = os.stat(path)
        return File(os.path.join(os.getcwd(), path), info.st_size, info.st_mtime_ns)

    def is_folder(self, path: str) -> bool:
        """Return whether there is a folder."""
        return os.path.isdir(path)

    def glob(self, pattern: str) -> list[str]:
        """Return the files that match, as `pipeline.sources.local_glob` finds them."""
        return sorted(files_like(pattern))

    def open(self, file: File, patience: Patience | None = None) -> BinaryIO:
        """Open the file; a FIFO or device is refused, not waited for."""
        fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file")
        return os.fdopen(fd, "rb")

    def read(self, file: File, offset: int, size: int) -> bytes:
        """Return the bytes by ``pread``."""
        handle = _handle(file)  # keep a reference, or it may be closed during the read: concurrent threads may open two
        fd = handle.fd
        _check_local(file, os.fstat(fd))
        data = os.pread(fd, size, offset)
        while len(data) < size:  # Linux returns at most 2 GiB at a time, other systems less or more
            more = os.pread(fd, size - len(data), offset + len(data))
            if not more:
                raise OSError(errno.EIO, "the archive ends inside it")
            data += more
        return data

    def read_all(self, file: File) -> bytes:
        """Return the file's bytes, as they are now."""
        return FileReader(b"")(os.fsencode(file.path))

    def check(self, file: File) -> None:
        """Raise `Changed` where the file is not as it was listed."""
        _check_local(file, os.stat(file.path))

    def address(self, path: str) -> str:
        """Return the absolute path."""
        return os.path.abspath(path)


def _check_local(file: File, info: os.stat_result) -> None:
    if (info.st_size, info.st_mtime_ns) != (file.size, file.stamp):
        raise Changed


class _Handle:
    """An open file that closes with its last reference: another thread may read it after its eviction."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.fd)


@functools.lru_cache(OPEN_FILES)
def _handle(file: File) -> _Handle:
    return _Handle(file.path)


@dataclass(frozen=True, slots=True)
class RemoteStore(Store):
    """The file system of an fsspec URL; every process opens its own at the first read.

    Parameters
    ----------
    url : str
        Any URL of the store; may hold credentials, which is why it is never shown.
    """

    url: str = field(repr=False)

    @property
    def protocol(self) -> str:  # type: ignore[override]
        """Return the URL's scheme."""
        return self.url.partition("://")[0]

    def path_of(self, url: str) -> str:
        """Return a URL as the store's own path."""
        return str(self._fs._strip_protocol(url))

    @property
    def _fs(self) -> Any:
        return _filesystem(self.url)

    def look(self, path: str) -> File:
        """Return size and stamp."""
        return _file(path, self._ask(path, lambda fs: info_of(fs, self.protocol, path, attempt_left())))

    def is_folder(self, path: str) -> bool:
        """Return whether the path has any files below it."""
        if self.protocol in ("http", "https"):  # fsspec would download the whole file to search it for links
            return path.endswith("/")
        return bool(self._ask(path, lambda fs: fs.isdir(path)))

    def glob(self, pattern: str) -> list[str]:
        """Return the files that match."""
        found = self._ask(pattern, lambda fs: fs.glob(pattern, detail=True))
        return sorted(path for path, info in found.items() if info.get("type", "file") == "file")

    def find(self, folder: str) -> list[File]:
        """Return all files below a folder, sorted."""

        def question(fs: Any) -> Mapping[str, Mapping[str, Any]]:
            found = fs.find(folder, detail=True)
            if isinstance(found, dict):
                return found
            raise OSError(errno.EAGAIN, "a folder was taken for a file")  # by adlfs, after answers that were disturbed

        found = self._ask(folder, question)
        return [_file(path, found[path]) for path in sorted(found)]

    def refresh(self) -> None:
        """Discard listings that fsspec has cached."""
        self._fs.invalidate_cache()

    def open(self, file: File, patience: Patience | None = None) -> BinaryIO:
        """Open the file; every range that is read of it is of the version that was listed."""
        if file.size < 0:
            with _as_os_error(file.path):
                return cast("BinaryIO", self._fs.open(file.path, "rb"))

        def read(offset: int, size: int) -> bytes:
            return patience.call(lambda: self.read(file, offset, size)) if patience else self.read(file, offset, size)

        return cast("BinaryIO", RangeFile(read, file.size))

    def head(self, file: File, size: int) -> bytes:
        """Return up to ``size`` bytes from the start."""
        if file.size < 0:
            return Store.head(self, file, size)
        return Patience().call(lambda: self.read(file, 0, min(size, file.size)))

    def read(self, file: File, offset: int, size: int) -> bytes:
        """Return the bytes by one ranged request, which also tells the version that they are of."""
        return self._fetch(file, offset, size) if size else b""

    def read_all(self, file: File) -> bytes:
        """Return the file's bytes, by one request."""
        if file.size < 0:  # listed by a page of links: an answer that is cut off could not be told from a whole one
            found = self._now(file)
            try:
                data = self._fetch(found, 0, -1)
            except Changed:
                raise OSError(errno.EAGAIN, "two answers tell two sizes or versions") from None
        else:
            data = self._fetch(file, 0, -1)
        if len(data) > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"file of {len(data)} bytes, above {MAX_FILE_BYTES}")
        return data

    def _fetch(self, file: File, offset: int, size: int) -> bytes:
        """Return exactly these bytes of the version that was listed.

        Raises
        ------
        Changed
            It is another version now.
        OSError
            Of a number that may pass where the bytes are fewer or more than they must be.
        """
        wanted = Wanted(file.path, file.version, offset, size)
        try:
            answer = self._once(file.path, lambda fs: fetch(fs, self.protocol, wanted, attempt_left()), listed=True)
        except Changed:
            raise
        except OSError as error:
            if not may_pass(error):
                self._check(file)
            raise
        if file.version and answer.version not in ("", file.version):
            raise Changed
        if -1 not in (file.size, answer.total) and file.size != answer.total:
            self._check(file)  # unchanged: the answer is wrong
            raise OSError(errno.EAGAIN, f"expected a file of {file.size} bytes, found {answer.total}")
        if answer.start not in (-1, offset):
            raise OSError(errno.EAGAIN, f"expected bytes from {offset}, found them from {answer.start}")
        expected = file.size if size < 0 else size
        if expected not in (-1, len(answer.data)):
            self._check(file)  # unchanged: the connection ended early
            raise OSError(errno.EAGAIN, f"expected {expected} bytes, found {len(answer.data)}")
        if not answer.version or not file.version:
            self._check(file)
        return answer.data

    def _check(self, file: File) -> None:
        """Check, without a cached listing, that the file is as it was listed; for stores whose reads do not say it."""
        if file.size < 0 and file.stamp < 0:  # nothing is known of it
            return
        self.refresh()
        now = self._now(file)
        if (now.size, now.stamp) != (file.size, file.stamp):
            raise Changed

    def _now(self, file: File) -> File:
        path = file.path
        return self._once(path, lambda fs: _file(path, info_of(fs, self.protocol, path, attempt_left())), listed=True)

    def address(self, path: str) -> str:
        """Return the URL without credentials."""
        return public(self._fs.unstrip_protocol(path))

    def _ask(self, path: str, question: Callable[[Any], _Answer]) -> _Answer:
        """Ask the store with patience: what is listed once is worth more waiting than a single image."""
        return Patience().call(lambda: self._once(path, question))

    def _once(self, path: str, question: Callable[[Any], _Answer], *, listed: bool = False) -> _Answer:
        """Ask once, or twice where credentials have expired; of a listed file, new ones that fail too may pass."""
        with _as_os_error(path):
            try:
                return question(self._fs)
            except Exception as error:
                if not has_expired(error):
                    raise
            # New credentials are asked for by a new client.
            type(self._fs).clear_instance_cache()
            _filesystem.cache_clear()
            try:
                return question(self._fs)
            except Exception as error:
                if listed and has_expired(error):  # they were right when it was listed
                    raise OSError(errno.EAGAIN, public(first_line(error))) from None
                raise


def open_store(location: str) -> tuple[Store, str]:
    """Return the store of a path or URL, and the location as that store's path.

    Raises
    ------
    SourceError
        A protocol that fsspec does not know, or whose package is not installed.
    """
    if location.startswith("file://"):
        location = location.removeprefix("file://")
    if not is_url(location):
        return LocalStore(), location
    store = RemoteStore(location)
    path = store.path_of(location)
    store.refresh()
    return store, path


@functools.lru_cache(64)
def _filesystem(url: str) -> Any:
    import fsspec

    protocol = url.partition("://")[0]
    try:
        return raise_failed_listings(fsspec.core.url_to_fs(url, **settings_of(protocol))[0])
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        hint = f"pip install 'embedding-pipeline[{extra}]'" if extra else "install the package that it names"
        raise SourceError(
            f"expected what {protocol}:// needs, found it missing ({first_line(error)}): {hint}"
        ) from None
    except ValueError as error:
        raise SourceError(f"cannot open {public(url)}: {public(first_line(error))}: check the URL") from None


@contextlib.contextmanager
def _as_os_error(path: str) -> Iterator[None]:
    """Turn any error of a store's client into an `OSError` without credentials."""
    try:
        yield
    except (SourceError, MemoryError, Changed):
        raise
    except FileNotFoundError as error:
        if may_pass(
            error.__cause__ or error.__context__ or error
        ):  # fsspec takes any failed request for a missing file
            raise OSError(errno.EAGAIN, public(first_line(error))) from None
        raise FileNotFoundError(errno.ENOENT, "no such file, or it cannot be reached", public(path)) from None
    except WithoutRangesError as error:
        raise OSError(errno.ENOTSUP, str(error)) from None
    except Exception as error:
        if has_status(error, REPLACED):
            raise Changed from None
        text = public(first_line(error))
        number = errno.EAGAIN if may_pass(error) else getattr(error, "errno", None) or errno.EIO
        raise OSError(number, text) from None


def _file(path: str, info: Mapping[str, Any]) -> File:
    size = info.get("size")
    return File(path, -1 if size is None else int(size), _stamp(info), version_of(info))


def _stamp(info: Mapping[str, Any]) -> int:
    """Return a number that changes when a file does; the names of time and tag depend on the store."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, (int, float)):
            return int(value * 1e9)
        if hasattr(value, "timestamp"):
            seconds = cast("Any", value).timestamp()
            if name in ("LastModified", "last_modified"):
                # S3 and Azure give whole seconds, MinIO's listings more: of two versions in one second the tags differ.
                return int(seconds) * 10**9 + number_of(version_of(info)) % 10**9
            return int(seconds * 1e9)
    for name in ("ETag", "etag", "blob_id", "md5Hash", "updated", "Last-Modified"):
        if info.get(name):
            return number_of(str(info[name]))
    return -1
