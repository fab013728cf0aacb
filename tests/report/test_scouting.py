"""The page of a comparison of networks."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.report.scouting import write_scout_page
from pipeline.scouting.comparison import AS_GOOD, BEST, DROPPED, WORSE
from tests.browser import opened
from tests.scouting.test_comparison import a_line

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "</script><script>alert(1)</script>"
FACTS: dict[str, Any] = {"images": HOSTILE, "images in all": 5000, "classes": 3, "then": "pipeline extract …"}
LINES = [
    a_line("a", accuracy=0.95, standing=BEST),
    a_line(f"b {HOSTILE}", accuracy=0.94, standing=AS_GOOD, recommended=True, images_per_second=math.nan),
    a_line("a blocks.1:avg", network="a", accuracy=0.80, standing=WORSE),
    a_line("c", accuracy=0.70, standing=DROPPED, rows=200),
]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    write_scout_page(tmp_path / "p.html", LINES, notes=["c: dropped after 200 images"], facts=FACTS)
    return tmp_path / "p.html"


def figures(page: Path) -> dict[str, Any]:
    found = re.search(r'<script id="figures" type="application/json">(.*?)</script>', page.read_text())
    assert found is not None
    return dict(json.loads(found[1]))


def test_the_page_says_what_to_take_and_why(page: Path) -> None:
    text = page.read_text()
    assert "4 candidates from 3 networks, compared on 2000 of 5000 images in 3 classes." in text
    assert "1 of the others cannot be distinguished from the best, a." in text
    assert "dropped, on 200 images" in text
    assert "c: dropped after 200 images" in text
    assert HOSTILE not in text
    assert text.count("<tr>") >= 4


def test_what_was_dropped_is_in_the_table_and_in_no_figure(page: Path) -> None:
    drawn = figures(page)
    assert drawn["accuracy"]["y"]["names"][-1] == "a blocks.1:avg"
    assert len(drawn["accuracy"]["y"]["names"]) == 3
    marked, others = drawn["accuracy"]["series"]
    assert marked["x"] == [0.94]
    assert others["x"] == [0.95, 0.8]
    # A network whose speed is unknown has no place along it.
    assert [series["y"] for series in drawn["cost"]["series"]] == [[0.95, 0.8]]


def test_a_small_sample_of_an_archive_is_named_as_one(page: Path, tmp_path: Path) -> None:
    warning = "gain more from further images"
    assert warning not in page.read_text()  # 2000 of 5000 images
    write_scout_page(tmp_path / "large.html", LINES, notes=[], facts=FACTS | {"images in all": 8000})
    assert warning in (tmp_path / "large.html").read_text()


def test_of_one_network_the_layers_alone_are_named(tmp_path: Path) -> None:
    lines = [
        a_line("a", recommended=True, standing=BEST),
        a_line("a blocks.1:avg", network="a"),
        a_line("a concat", network="a"),
    ]
    write_scout_page(tmp_path / "p.html", lines, notes=[], facts=FACTS)
    drawn = figures(tmp_path / "p.html")
    assert drawn["accuracy"]["y"]["names"] == ["penultimate", "blocks.1:avg", "concat"]
    assert "cost" not in drawn
    assert "a is better than every other, and is recommended." in (tmp_path / "p.html").read_text()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1100, 400])
def test_the_page_renders(width: int, browser: Any, tmp_path: Path) -> None:
    lines = [replace(line, candidate=line.candidate * 3) for line in LINES]
    write_scout_page(tmp_path / "p.html", lines, notes=[], facts=FACTS)
    with opened(browser, tmp_path / "p.html", width) as page:
        assert page.locator("#plot-accuracy circle").count() == 3
        assert page.locator("#candidates tbody tr").count() == 4
