from __future__ import annotations

import errno
import json
import os
import zlib
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from pipeline.labelling.journal import Journal, LabelError, read_journal

if TYPE_CHECKING:
    from pathlib import Path

ENTRIES: list[dict[str, Any]] = [
    {"do": "class", "value": "café \udcff\u2028"},
    {"do": "label", "keys": ["a\nb", "c\td"], "value": "cat"},
    {"do": "undo"},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    at = tmp_path / "labels.csv.journal"
    journal = Journal(at, {"task": "classification"})
    for entry in ENTRIES:
        journal.append(entry)
    journal.close()
    return at


def test_what_was_appended_is_read_again(path: Path) -> None:
    header, entries = read_journal(path)
    assert header["task"] == "classification"
    assert entries == ENTRIES
    again = Journal(path, {"task": "regression"})
    assert again.header["task"] == "classification"
    assert again.entries == ENTRIES
    again.close()
    for line in path.read_bytes().splitlines():
        text, _, crc = line.partition(b"\t")
        json.loads(text)
        assert int(crc, 16) == zlib.crc32(text)


def test_any_cut_loses_the_last_entry_at_most(path: Path) -> None:
    whole = path.read_bytes()
    ends = [n + 1 for n, byte in enumerate(whole) if byte == 10]
    for cut in range(ends[0], len(whole)):
        path.write_bytes(whole[:cut])
        journal = Journal(path, {})
        assert journal.entries == ENTRIES[: sum(end <= cut for end in ends) - 1]
        assert journal.dropped == (cut not in ends)
        journal.append({"do": "redo"})
        journal.close()
        assert read_journal(path)[1][-1] == {"do": "redo"}


def test_a_journal_cut_in_its_first_line_begins_anew(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:10])
    journal = Journal(path, {"task": "multilabel"})
    assert journal.header["task"] == "multilabel"
    assert journal.entries == []
    journal.close()


def test_damage_before_the_end_is_refused(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"keys")] ^= 1
    path.write_bytes(data)
    with pytest.raises(LabelError, match="line 3 of a journal undamaged"):
        Journal(path, {})
    assert path.read_bytes() == data


@pytest.mark.parametrize("text", ["key,label\n", '{"format":"other"}\n', "\n"])
def test_other_files_are_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    at = tmp_path / "j"
    at.write_text(text)
    with pytest.raises(LabelError, match="found something else"):
        Journal(at, {})
    assert at.read_text() == text


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    text = json.dumps({"format": "embedding-pipeline labels", "version": 2}).encode()
    (tmp_path / "j").write_bytes(b"%s\t%08x\n" % (text, zlib.crc32(text)))
    with pytest.raises(LabelError, match="version 2"):
        Journal(tmp_path / "j", {})


def test_each_entry_is_synced_before_append_returns(path: Path) -> None:
    journal = Journal(path, {})
    with mock.patch("os.fsync") as sync:
        journal.append({"do": "undo"})
        sync.assert_called_once()
    journal.close()


def test_a_full_disk_costs_the_action_and_nothing_else(path: Path) -> None:
    journal = Journal(path, {})
    before = path.read_bytes()
    real = os.pwrite

    def half(fd: int, data: Any, at: int) -> int:
        if len(data) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, bytes(data)[: len(data) // 2], at)

    with mock.patch("os.pwrite", half), pytest.raises(LabelError, match="No space left"):
        journal.append({"do": "undo"})
    assert path.read_bytes() == before
    journal.append({"do": "redo"})
    assert read_journal(path)[1] == [*ENTRIES, {"do": "redo"}]
    journal.close()


def test_after_a_failed_sync_nothing_is_written_any_more(path: Path) -> None:
    journal = Journal(path, {})
    with (
        mock.patch("os.fsync", side_effect=OSError(errno.EIO, "Input/output error")),
        pytest.raises(LabelError, match="cannot sync"),
    ):
        journal.append({"do": "undo"})
    with pytest.raises(LabelError, match="start pipeline label again"):
        journal.append({"do": "redo"})
    journal.close()
