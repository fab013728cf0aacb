"""The parts of scripts/bench_gpu.py that keep it within its time and going on after a failure."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPTS / "bench_gpu.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "bench_gpu", module)
        spec.loader.exec_module(module)
        yield module


def rows_of(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("ROW ")) for line in lines if line.startswith("ROW ")]


@pytest.mark.parametrize(("each", "count"), [(True, 3), (False, 1)])
def test_every_backbone_is_measured_and_the_shares_keep_their_sum(bench: Any, each: bool, count: int) -> None:
    found = bench.processes(["start", "forward"], {"start": 10.0, "forward": 30.0}, each=each)
    assert [process.part for process in found] == ["start"] + count * ["forward"]
    assert [name for process in found[1:] for name in process.backbones] == list(bench.BACKBONES)
    assert math.isclose(sum(process.share for process in found), 40)


def test_both_scales_have_a_share_for_every_part(bench: Any) -> None:
    for scale in (bench.ON_GPU, bench.ON_CPU):
        assert list(scale.shares) == list(bench.PARTS)
        assert set(scale.precisions) <= set(bench.PRECISIONS)


def test_what_a_part_leaves_is_shared_by_those_that_follow(bench: Any) -> None:
    assert bench.limit_of([1, 1, 2], 100) == 25
    assert bench.limit_of([1, 2], 96) == 32  # the first took 4 of its 25 seconds
    assert bench.limit_of([2], 50) == 50
    assert bench.limit_of([2], -3) == 0


def test_a_failed_measurement_does_not_stop_the_others(bench: Any) -> None:
    def fails() -> Any:
        raise ValueError("no such kernel\nand a long trace")

    def measurements() -> Iterator[Any]:
        yield "a", fails
        yield "b", lambda: bench.Row("", "", 12.5)
        raise RuntimeError("no more memory")

    lines: list[str] = []
    bench.run_part("forward", measurements(), math.inf, lines.append)
    assert [(row["part"], row["what"], row["rate"], row["note"]) for row in rows_of(lines)] == [
        ("forward", "a", None, "failed: ValueError: no such kernel"),
        ("forward", "b", 12.5, ""),
        ("forward", "the rest", None, "failed: RuntimeError: no more memory"),
    ]


def test_nothing_is_begun_after_the_end(bench: Any) -> None:
    lines: list[str] = []
    bench.run_part("decode", iter([("a", lambda: pytest.fail("it was measured"))]), -math.inf, lines.append)
    assert [row["note"] for row in rows_of(lines)] == ["left out: no time"]


def test_a_part_that_is_stopped_keeps_its_rows_and_names_what_it_was_at(bench: Any) -> None:
    row = json.dumps({"part": "launch", "what": "eager", "rate": 3.0, "cosine": None, "note": ""})
    code = f"import time; print('BEGUN eager'); print('ROW ' + {row!r}); print('BEGUN compile', flush=True)"
    found = bench.watch([sys.executable, "-I", "-S", "-c", code + "; time.sleep(600)"], "launch", 2, dict(os.environ))
    assert [(row.what, row.rate, row.note) for row in found] == [
        ("eager", 3.0, ""),
        ("compile", None, "stopped after 2 s"),
    ]


def test_a_part_that_dies_says_why(bench: Any) -> None:
    code = "import sys; print('BEGUN graph', flush=True); sys.exit('illegal address')"
    (row,) = bench.watch([sys.executable, "-c", code], "launch", 60, dict(os.environ))
    assert (row.what, row.note) == ("graph", "failed: illegal address")


def test_the_table_has_a_line_for_each_row_whatever_an_error_says(bench: Any) -> None:
    rows = [bench.Row("forward", "a", 1234.56, 0.9999912), bench.Row("decode", "b", 9.87, note="failed: x | y\nz")]
    assert bench.table(rows).splitlines()[2:] == [
        "| forward | a | 1235 | 0.99999 |  |",
        "| decode | b | 9.9 |  | failed: x \\| y z |",
    ]
