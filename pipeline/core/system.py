"""The process and its machine: processors, memory limits, the cache folder of the user, versions, child processes."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import signal
import zlib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DISTRIBUTION = "embedding-pipeline"
"""The name under which the package is installed, and of its folder in the user's cache."""

LOCAL_LOCKS = {"nolock", "local_lock=all", "local_lock=posix", "localflock", "nobrl"}
"""Options of mounts of NFS, Lustre and SMB whose locks exclude processes of the same machine only."""

PACKAGE_ROOT = Path(__file__).parent.parent.parent
"""The folder from which a child process imports the package."""


def processor_count() -> int:
    """Return how many processors this process may use; taskset, a container or a batch system may limit them.

    ``PYTHON_CPU_COUNT`` overrides what the system says, as it does for `os.process_cpu_count`.
    """
    asked = os.environ.get("PYTHON_CPU_COUNT", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_folder() -> Path:
    """Return the user's cache folder: ``$XDG_CACHE_HOME/embedding-pipeline``, by default in ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")  # noqa: PTH111, PTH118
    return Path(base) / DISTRIBUTION


def package_stamp() -> int:
    """Return a number that differs once a module of this package was replaced, as by an upgrade; 0 meanwhile."""
    try:
        files = [file.stat() for file in Path(__file__).parent.parent.rglob("*.py")]
    except OSError:  # a file was removed just now
        return 0
    return zlib.crc32(repr(sorted((file.st_mtime_ns, file.st_size) for file in files)).encode())


def child_environment() -> dict[str, str]:
    """Return the environment of a Python child process that imports this same package."""
    path = os.pathsep.join(filter(None, [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


def give_memory_back() -> None:
    """Return freed memory to the system: glibc's allocator keeps what many threads have freed."""
    with contextlib.suppress(OSError, AttributeError):  # other systems, and other C libraries
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def child_signals_held() -> Iterator[None]:
    """Start child processes in this block with the signals that ask for an end held back.

    Ctrl-C and a terminal that goes away reach all processes of a group. A child that is still importing would print a
    traceback, and look as if it could not start. The main process ends its children.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def limit_memory(limit: int) -> None:
    """Limit the address space of this process to its present size plus ``limit`` bytes; 0 sets no limit.

    An allocation beyond it is a `MemoryError` here, instead of the kernel killing a process of its choice.
    """
    if not limit:
        return
    with contextlib.suppress(ImportError, OSError, ValueError):  # some systems have no such limit
        import resource  # Windows has no such module

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + limit, hard))


@contextlib.contextmanager
def memory_limit_lifted() -> Iterator[None]:
    """Suspend the limit of `limit_memory`; what the process has grown by meanwhile does not count afterwards."""
    try:
        import resource  # Windows has no such module

        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        before = _address_space()
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    except (ImportError, OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        limit = soft if soft == resource.RLIM_INFINITY else soft + max(_address_space() - before, 0)
        with contextlib.suppress(OSError, ValueError):  # a hard limit of the system may be lower
            resource.setrlimit(
                resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
            )


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def has_local_locks(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Return whether the locks of a folder's file system are known to this machine alone, although it is shared.

    Parameters
    ----------
    folder : Path
    mounts : Path
        The system's list of mounts.

    Raises
    ------
    OSError
        There is no such folder.
    """
    device = os.stat(folder).st_dev  # noqa: PTH116  # a path of any kind
    try:
        lines = mounts.read_text("utf-8", errors="replace").splitlines()
    except OSError:  # another system than Linux
        return False
    for line in lines:
        mount, _, of_file_system = line.partition(" - ")
        if mount.split()[2] == f"{os.major(device)}:{os.minor(device)}":
            options = {*mount.split()[5].split(","), *of_file_system.split()[-1].split(",")}
            if options & LOCAL_LOCKS:
                return True
    return False


def versions_of(names: Iterable[str]) -> dict[str, str]:
    """Return the version of each installed distribution, and Python's; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
