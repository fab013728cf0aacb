"""Reading the structure of a file that may be damaged or hostile: HDF5 parses it in a child process, with limits.

HDF5 trusts the structures it reads; a flipped bit or an attack can make it crash, loop or ask for all memory. Here only
the child process is affected.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache import format as fmt
from pipeline.cache.format import Extent
from pipeline.core.system import child_environment, child_signals_held, limit_memory
from pipeline.errors import CacheError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SECONDS = 5.0
START_SECONDS = 60.0
MEMORY = 1 << 30
READY = b"ready\n"
CHILD = "import sys; from pipeline.cache.sandbox import main; main(sys.argv[1])"
_DTYPES = frozenset({"|u1", "|i1", "<i4", "<i8", "<u4", "<f2", "<f4", "<f8"})


@dataclass(frozen=True, slots=True)
class Layout:
    """What HDF5 finds in a file.

    Attributes
    ----------
    attributes : dict of str to str or int
        Of the file.
    extents : dict of str to Extent
        Where the datasets' bytes lie, all of them within the file.
    """

    attributes: dict[str, Any]
    extents: dict[str, Extent]


def probe(path: Path, *, seconds: float = SECONDS, memory: int = MEMORY) -> Layout:
    """Return a file's layout without parsing it here.

    Parameters
    ----------
    path : Path
    seconds : float
        The time that parsing may take.
    memory : int
        Memory in bytes, where the system has such a limit.

    Raises
    ------
    CacheError
        It is no regular file, no HDF5 file or no cache, or HDF5 crashes, hangs or runs out of memory on it.
    """
    fmt.check_is_file(path)
    try:
        with path.open("rb") as raw:
            head = raw.read(len(SIGNATURE))
    except OSError as error:
        raise CacheError(f"cannot read {path}: {error.strerror}: change its permissions") from None
    if head != SIGNATURE:
        raise fmt.not_a_cache(path, "no HDF5 file")
    answer = _ask_child(path, seconds, memory)
    try:
        found = json.loads(answer)
        if "error" in found:
            raise CacheError(str(found["error"]))
        return Layout(
            found["attributes"],
            {
                name: Extent(offset, tuple(shape), _dtype(dtype))
                for name, (offset, shape, dtype) in found["extents"].items()
            },
        )
    except (ValueError, KeyError, TypeError) as error:
        raise fmt.damaged(path, f"its structure makes no sense ({error})") from None


def _ask_child(path: Path, seconds: float, memory: int) -> bytes:
    """Let a child process parse the file, within limits; return what it prints."""
    with child_signals_held():
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD, str(path.absolute())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(),
        )
    with child:
        assert child.stdout is not None
        watchdog = threading.Timer(START_SECONDS, child.kill)
        watchdog.start()
        started = child.stdout.readline() == READY
        watchdog.cancel()
        if not started:
            raise CacheError("expected a child process that reads HDF5, but it did not start: check the installation")
        try:
            answer, _ = child.communicate(f"{memory}\n".encode(), timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            raise fmt.damaged(path, f"reading its structure takes longer than {seconds:g} s") from None
    if child.returncode:
        raise fmt.damaged(path, f"HDF5 crashes on its structure ({child.returncode})")
    return answer


def main(path: str) -> None:
    """Run in the child process: parse, and print the layout as JSON."""
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    limit_memory(int(sys.stdin.readline()))
    try:
        extents = fmt.read_extents(Path(path))
        with fmt.open_hdf5(Path(path)) as file:
            attributes = {name: _plain(value) for name, value in file.attrs.items()}
        found: dict[str, Any] = {
            "attributes": attributes,
            "extents": {name: [e.offset, list(e.shape), e.dtype.str] for name, e in extents.items()},
        }
    except CacheError as error:
        found = {"error": str(error)}
    except Exception as error:  # on any error of h5py the file is not a cache, or is damaged
        found = {"error": str(fmt.not_a_cache(Path(path), error))}
    print(json.dumps(found))


def _plain(value: Any) -> str | int:
    if isinstance(value, str):
        return value
    return value.decode() if isinstance(value, bytes) else int(value)


def _dtype(name: str) -> np.dtype[Any]:
    if name not in _DTYPES and not (name.startswith("|S") and name[2:].isdecimal()):
        raise ValueError(f"data of type {name}")
    return np.dtype(name)
