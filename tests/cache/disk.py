"""A model of a disk that loses power: records writes, syncs and renames, and gives the states a cut could leave.

A page that was not synced may hold any of the versions it had since the last sync; a rename that was not followed by a
sync of its folder may or may not have happened.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cache import writer as writer_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import pytest

PAGE = 4096


class Disk:
    """Patches the calls by which the cache reaches the disk; ``after`` is called at every point power may fail.

    Parameters
    ----------
    monkeypatch : pytest.MonkeyPatch
    names : list of Path
        Files to look at after a cut.
    syncs : bool
        False plants a bug: syncs are asked for and not done.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: list[Path], *, syncs: bool = True) -> None:
        self.after: Callable[[Disk], None] = lambda disk: None
        self._names = names
        self._durable: dict[int, bytes] = {}
        self._versions: dict[int, dict[int, list[bytes]]] = defaultdict(dict)
        self._keep: list[int] = []
        self._pwrite, self._fsync, self._replace, self._syncs = os.pwrite, os.fsync, os.replace, syncs
        for name in names:
            if name.exists():
                self._durable[self._inode(name)] = name.read_bytes()
        self._names_now = self._names_durable = self._look()
        monkeypatch.setattr(os, "pwrite", self._record_write)
        monkeypatch.setattr(os, "fsync", self._record_sync)
        monkeypatch.setattr(writer_module, "_datasync", self._record_sync)
        monkeypatch.setattr(os, "replace", self._record_replace)
        # pathlib of some versions bound os.replace when it was imported
        monkeypatch.setattr(Path, "replace", lambda path, target: self._record_replace(path, target))

    def states(self, random: np.random.Generator, count: int) -> Iterator[dict[Path, bytes]]:
        """Yield what the files may hold after a cut now: the extremes, then mixtures."""
        for number in range(count):
            names = self._names_durable if random.integers(2) else self._names_now
            yield {name: self._content(inode, random, number) for name, inode in names.items() if inode is not None}

    def _content(self, inode: int, random: np.random.Generator, number: int) -> bytes:
        durable = bytearray(self._durable.get(inode, b""))
        for page, versions in self._versions[inode].items():
            if number == 0:  # nothing that was not synced is there
                continue
            last = number == 1 or (number == 2 and page == max(self._versions[inode])) or (number == 3 and page % 2)
            which = len(versions) - 1 if last else int(random.integers(-1, len(versions)))
            if which >= 0:
                start = page * PAGE
                if len(durable) < start + len(versions[which]):
                    durable.extend(bytes(start + len(versions[which]) - len(durable)))
                durable[start : start + len(versions[which])] = versions[which]
        return bytes(durable)

    def _record_write(self, fd: int, data: Any, offset: int) -> int:
        written = self._pwrite(fd, data, offset)
        inode = os.fstat(fd).st_ino
        for page in range(offset // PAGE, (offset + max(written, 1) - 1) // PAGE + 1):
            self._versions[inode].setdefault(page, []).append(os.pread(fd, PAGE, page * PAGE))
        self.after(self)
        return written

    def _record_sync(self, fd: int) -> None:
        if self._syncs:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                self._names_durable = dict(self._names_now)
            else:
                info = os.fstat(fd)
                content = Path(f"/proc/self/fd/{fd}").resolve().read_bytes()
                self._durable[info.st_ino] = content
                self._versions[info.st_ino].clear()
        self.after(self)

    def _record_replace(self, source: Any, target: Any) -> Path:
        for path in (
            source,
            target,
        ):  # a descriptor kept open: the inode's number is not given to another file
            if Path(path).exists():
                self._keep.append(os.open(path, os.O_RDONLY))
        self._replace(source, target)
        self._names_now = self._look()
        self.after(self)
        return Path(target)

    def _look(self) -> dict[Path, int | None]:
        return {name: self._inode(name) if name.exists() else None for name in self._names}

    def close(self) -> None:
        for fd in self._keep:
            os.close(fd)

    @staticmethod
    def _inode(path: Path) -> int:
        return path.stat().st_ino
