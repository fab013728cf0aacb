"""The lease on a file system without locks: one writer at a time, whichever of them is slow, suspended or dead."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.cache import CacheWriter, lease, open_cache, write_lock
from pipeline.cache.holder import described, parse
from pipeline.cache.lease import Lease, confirm_leases
from pipeline.cache.lock import holder_of, lock_path
from pipeline.cache.parts import State, look_at
from pipeline.cache.replace import lay_out, publish
from pipeline.errors import CacheError, LockedError
from tests.cache.synthetic import fill, make_cache, make_items, write_rows, wrong_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

WITHOUT_LOCKS = """
import errno, fcntl, os, sys, time
from pathlib import Path
def refuse(*arguments):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.lockf = refuse
from pipeline.cache import lease, write_lock
from pipeline.errors import LockedError
path = Path(sys.argv[1])
"""
HOLD = f"""{WITHOUT_LOCKS}
with write_lock(path):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", refuse)


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def of_another_host(file: Path, token: str = "0123456789ab", *, age: float = 0.0) -> Path:
    """Write a lease or claim as another host would have, renewed ``age`` seconds ago."""
    text = described(token).replace(os.uname().nodename, "elsewhere").replace(" of ", " of other-")
    file.write_text(text)
    moment = time.time() - age
    os.utime(file, (moment, moment))
    return file


def expire(path: Path) -> None:
    moment = time.time() - 2 * lease.EXPIRED_S
    os.utime(path, (moment, moment))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, 524])
def test_a_lease_takes_the_place_of_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with write_lock(tmp_path / "c.h5") as lock:
        assert isinstance(lock, Lease)
        assert [file.name for file in tmp_path.iterdir()] == ["c.h5.lock"]
        with pytest.raises(LockedError, match="by this process"), write_lock(tmp_path / "c.h5"):
            pass
        lock.computing(7)
        holder = holder_of(tmp_path / "c.h5")
        assert holder is not None
        assert (holder.process, holder.done, holder.alive) == (os.getpid(), 7, True)
    assert not list(tmp_path.iterdir())


def test_a_second_writer_is_refused_and_a_dead_holder_is_known_at_once(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    with run(HOLD, path) as process:
        assert line_of(process) == "held"
        with pytest.raises(LockedError, match=f"process {process.pid} on .* renewed its lease") as caught:
            write_lock(path).__enter__()
        assert "\n" not in str(caught.value)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert look_at([path]).parts[0].state == State.DIED
    with write_lock(path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_process_that_started_later_is_not_the_holder(tmp_path: Path) -> None:
    """Numbers of processes are given again."""
    text = described("0123456789ab")
    lock_path(tmp_path / "c.h5").write_text(text[: text.rindex(" ")] + " 1")
    with write_lock(tmp_path / "c.h5"):
        pass


def test_a_holder_on_another_host_is_waited_for_until_its_lease_expires(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    file = of_another_host(lock_path(path), age=lease.EXPIRED_S - 5)
    with pytest.raises(LockedError, match=r"on elsewhere .* wait for it"), write_lock(path):
        pass
    assert look_at([path]).parts[0].state == State.RUNNING
    of_another_host(file, age=lease.EXPIRED_S + 5)
    (part,) = look_at([path]).parts
    assert part.state == State.DIED
    assert "on elsewhere" in str(part)
    with write_lock(path):
        pass


def test_the_clock_is_that_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_another_host(lock_path(tmp_path / "c.h5"))
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with pytest.raises(LockedError), write_lock(tmp_path / "c.h5"):
        pass


TAKE_OVER = f"""{WITHOUT_LOCKS}
with write_lock(path):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def lost(tmp_path: Path) -> Iterator[Path]:
    """Return a cache of which this process had the lease, which another process holds now."""
    path = make_cache(tmp_path / "c.h5", 8)
    with write_lock(path):
        confirm_leases()
        expire(lock_path(path))
        with run(TAKE_OVER, path) as other:
            assert line_of(other) == "held"
            yield path
            assert holder_of(path) is not None
            other.communicate("\n")
    assert holder_of(path) is None


def test_a_writer_that_lost_its_lease_commits_nothing(lost: Path) -> None:
    with pytest.raises(LockedError, match=r"c\.h5 was taken over by another process.*nothing more is written"):
        fill(lost)
    assert not open_cache(lost).status.any()


def test_a_lease_that_is_lost_between_write_and_commit_is_noticed(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "c.h5", 4)
    with write_lock(path):
        writer = CacheWriter(path)
        write_rows(writer, np.arange(4))
        of_another_host(lock_path(path))
        with pytest.raises(LockedError):
            writer.close()
    assert not open_cache(path).status.any()
    assert lock_path(path).exists(), "the lease of the other is not released"


def test_nothing_is_renamed_or_removed_without_the_lease(lost: Path) -> None:
    before = lost.read_bytes()
    other = lost.with_name("other.h5")
    other.write_bytes(b"new")
    with pytest.raises(LockedError):
        publish(other, lost)
    with pytest.raises(LockedError):
        lay_out(lost, make_items(2), widths={"penultimate": 2}, dtype="float32", attributes={})
    assert lost.read_bytes() == before
    assert {file.name for file in lost.parent.iterdir()} == {"c.h5", "c.h5.lock", "other.h5"}


SUSPENDED = f"""{WITHOUT_LOCKS}
lease.HEARTBEAT_S, lease.EXPIRED_S = 0.05, 0.5
import numpy as np
from pipeline.cache import CacheWriter
from tests.cache.synthetic import write_rows
with write_lock(path):
    writer = CacheWriter(path)
    write_rows(writer, np.arange(3))
    print("held", flush=True)
    sys.stdin.readline()
    try:
        writer.commit()
    except LockedError as error:
        print(error, flush=True)
"""


def test_a_writer_that_was_suspended_stops_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_cache(tmp_path / "c.h5", 8)
    monkeypatch.setattr(lease, "EXPIRED_S", 0.5)
    with run(SUSPENDED, path) as other:
        assert line_of(other) == "held"
        time.sleep(0.6)
        with pytest.raises(LockedError):  # it renews its lease
            write_lock(path).__enter__()
        other.send_signal(signal.SIGSTOP)
        held = wait_for_lease(path)
        try:
            other.send_signal(signal.SIGCONT)
            said, errors = other.communicate("\n")
            assert "was taken over by another process" in said, errors
            assert not open_cache(path).status.any()
            fill(path)
        finally:
            held.release()
    assert not wrong_rows(path)
    assert not lock_path(path).exists()


def wait_for_lease(path: Path) -> Lease:
    while True:
        try:
            return lease.take(lock_path(path))
        except LockedError:
            time.sleep(0.05)


def claim_on(path: Path, token: str) -> Path:
    return path.with_name(f".{path.name}.lock.{token}.claim")


def test_a_claim_whose_maker_died_is_claimed_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    of_another_host(lock_path(path), "0" * 12, age=500)
    claim = of_another_host(claim_on(path, "0" * 12), "1" * 12)
    with pytest.raises(LockedError, match="on elsewhere"), write_lock(path):  # it is about to have it
        pass
    expire(claim)
    with write_lock(path):
        # The maker of the first claim, suspended until now, would go on with its renaming, and finds itself claimed.
        assert {file.name for file in tmp_path.iterdir()} == {"c.h5.lock", claim.name, claim_on(path, "1" * 12).name}
    assert not lock_path(path).exists()


def test_who_claims_late_leaves_the_new_lease_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease was seen as expired, and is another's when the claim on it is made."""
    path, link = tmp_path / "c.h5", os.link
    of_another_host(lock_path(path), "0" * 12, age=500)

    def slowly(source: Any, target: Any) -> None:
        if str(target).endswith(".claim"):
            of_another_host(lock_path(path), "2" * 12)
        link(source, target)

    monkeypatch.setattr(os, "link", slowly)
    with pytest.raises(LockedError, match="on elsewhere"), write_lock(path):
        pass
    assert "2" * 12 in lock_path(path).read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["c.h5.lock"]


def test_who_renames_late_does_not_hold_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Suspended between claim and rename for so long that its claim was claimed."""
    path, rename = tmp_path / "c.h5", Path.rename
    of_another_host(lock_path(path), "0" * 12, age=500)

    def slowly(self: Path, target: Any) -> Path:
        holder = parse(self.read_text())
        assert holder is not None
        assert holder.token is not None
        of_another_host(claim_on(path, holder.token), "3" * 12)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", slowly)
    with pytest.raises(LockedError, match="being taken over by another process"), write_lock(path):
        pass


def test_a_lost_answer_of_the_server_is_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def twice(source: Any, target: Any) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    with write_lock(tmp_path / "c.h5"):
        pass
    assert not list(tmp_path.iterdir())


def test_without_hard_links_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(CacheError, match="neither locks nor hard links") as caught, write_lock(tmp_path / "c.h5"):
        pass
    assert not isinstance(caught.value, LockedError)
    assert not list(tmp_path.iterdir())


def test_locks_that_other_machines_do_not_see_are_not_relied_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("pipeline.cache.lock.has_local_locks", lambda folder: True)
    with write_lock(tmp_path / "c.h5") as lock:
        assert isinstance(lock, Lease)


@pytest.mark.parametrize("text", ["", "process 1 on login1 since 2026-01-01T00:00:00Z"])
def test_a_lock_of_a_host_that_has_locks_is_respected(tmp_path: Path, text: str) -> None:
    lock_path(tmp_path / "c.h5").write_text(text)
    with pytest.raises(LockedError, match=r"or remove .*c\.h5\.lock if that process is gone"):
        write_lock(tmp_path / "c.h5").__enter__()
    assert lock_path(tmp_path / "c.h5").read_text() == text


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    lock_path(tmp_path / "c.h5").write_text("mine")
    with pytest.raises(CacheError, match="no lock of this program"), write_lock(tmp_path / "c.h5"):
        pass


def test_where_locks_work_a_lease_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One folder may be mounted with locks on one host and without them on another."""
    monkeypatch.undo()
    file = of_another_host(lock_path(tmp_path / "c.h5"))
    with pytest.raises(LockedError, match="on elsewhere"), write_lock(tmp_path / "c.h5"):
        pass
    assert "elsewhere" in file.read_text()
    expire(file)
    with write_lock(tmp_path / "c.h5") as lock:
        assert not isinstance(lock, Lease)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("locks", [False, True])
def test_what_killed_processes_left_is_removed_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    if locks:
        monkeypatch.undo()
    path = tmp_path / "c.h5"
    old, new = claim_on(path, "0" * 12), claim_on(path, "1" * 12)
    of_another_host(old, age=2 * lease.KEPT_S)
    of_another_host(new, age=lease.KEPT_S / 2)
    others = of_another_host(tmp_path / ".d.h5.lock.012345678901.claim", age=2 * lease.KEPT_S)
    with write_lock(path):
        pass
    assert set(tmp_path.iterdir()) == {new, others}


def test_a_half_written_line_behind_a_lease_is_no_loss(tmp_path: Path) -> None:
    with write_lock(tmp_path / "c.h5"):
        with lock_path(tmp_path / "c.h5").open("a") as file:
            file.write("\n12 ro")
        confirm_leases()


RACE = f"""{WITHOUT_LOCKS}
lease.HEARTBEAT_S, lease.EXPIRED_S = 0.2, 2.0
end, held = time.monotonic() + float(sys.argv[2]), 0
mark = os.open(f"{{path}}.mark", os.O_RDWR | os.O_CREAT)
while time.monotonic() < end:
    try:
        with write_lock(path):
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if another process is here
            held += 1
            fcntl.flock(mark, fcntl.LOCK_UN)
    except LockedError:
        pass
print(held)
"""


def race(path: Path, racers: int, seconds: float, kills: int) -> tuple[int, int]:
    """Return how often the lease was held by racing processes of which some are killed, and how many were killed."""
    choose, running, killed = random.Random(7), [run(RACE, path, seconds) for _ in range(racers)], 0
    for _ in range(kills):
        time.sleep(choose.uniform(0.5, 1.0) * seconds / (kills + 1))
        victim = running.pop(choose.randrange(len(running)))
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        killed += 1
        running.append(run(RACE, path, seconds))
    held = 0
    for process in running:
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        held += int(said)
    return held, killed


def test_two_processes_race_for_the_lease(tmp_path: Path) -> None:
    held, _ = race(tmp_path / "c.h5", 2, 0.7, 0)
    assert held > 0


@pytest.mark.faults
def test_many_processes_race_for_the_lease_and_some_are_killed(tmp_path: Path) -> None:
    held, killed = race(tmp_path / "c.h5", 6, 30, 25)
    print(f"\nthe lease was held {held} times by 6 processes, {killed} of them killed: never by two at once")
    assert held > 100
