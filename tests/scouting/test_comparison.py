"""The lines of a comparison: which is recommended, what a cache would cost, and how they are written."""

from __future__ import annotations

import csv
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.scouting.comparison import (
    AS_GOOD,
    BEST,
    DROPPED,
    WORSE,
    Line,
    best_accuracies,
    cache_bytes,
    cheapest_of_the_best,
    write_csv,
)

if TYPE_CHECKING:
    from pathlib import Path


def a_line(candidate: str, **changes: Any) -> Line:
    facts: dict[str, Any] = {
        "candidate": candidate, "network": candidate, "layers": "penultimate", "width": 1280, "rows": 2000,
        "accuracy": 0.9, "low": 0.88, "high": 0.92, "difference": 0.0, "difference_low": -0.01,
        "difference_high": 0.01, "log_loss": 0.3, "C": 1.0, "images_per_second": 50.0, "archive_seconds": 100.0,
        "cache_bytes": 5_000_000, "standing": WORSE, "recommended": False, "cache": "a.h5",
    }  # fmt: skip
    return Line(**facts | changes)


def test_of_equal_candidates_the_quickest_is_recommended_then_the_narrowest() -> None:
    best = a_line("best", standing=BEST, archive_seconds=300.0)
    wide = a_line("wide", standing=AS_GOOD, archive_seconds=200.0, width=900)
    narrow = a_line("narrow", standing=AS_GOOD, archive_seconds=200.0, width=300)
    cheap = a_line("cheap", standing=WORSE, archive_seconds=1.0)
    dropped = a_line("dropped", standing=DROPPED, archive_seconds=1.0)
    unknown = a_line("unknown", standing=AS_GOOD, archive_seconds=math.nan, width=10)
    assert cheapest_of_the_best([best, cheap, dropped]) is best
    assert cheapest_of_the_best([best, wide, narrow, cheap, dropped, unknown]) is narrow


def test_a_network_is_as_good_as_its_best_candidate() -> None:
    lines = [a_line("a", accuracy=0.7), a_line("a x", network="a", accuracy=0.8), a_line("b", accuracy=0.75)]
    assert best_accuracies(lines) == {"a": 0.8, "b": 0.75}


class Held:
    """A cache of 10 rows: 40 bytes of embeddings, and 60 others, a row."""

    widths = {"penultimate": 6, "x": 4}  # noqa: RUF012
    layers = widths
    width, dtype, nbytes = 6, np.dtype(np.float32), 1000

    def __len__(self) -> int:
        return 10


def test_the_size_of_a_cache_is_that_of_its_rows() -> None:
    held: Any = Held()
    assert cache_bytes(held, ("penultimate", "x"), 100) == 100 * (40 + 60)
    assert cache_bytes(held, ("penultimate",), 100) == 100 * (24 + 60)
    assert cache_bytes(held, ("x",), 100) == 100 * (40 + 60)  # a cache has the penultimate layer in any case


def test_the_table_has_the_names_of_the_lines(tmp_path: Path) -> None:
    lines = [a_line("a, b", recommended=True, difference=-0.01234567), a_line("c", archive_seconds=math.nan)]
    write_csv(tmp_path / "s.csv", lines)
    with (tmp_path / "s.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["candidate"] for row in found] == ["a, b", "c"]
    assert [row["recommended"] for row in found] == ["yes", ""]
    assert found[0]["difference"] == "-0.0123457"
    assert found[0]["cache_bytes"] == "5000000"
    assert list(found[0]) == list(Line.__dataclass_fields__)
