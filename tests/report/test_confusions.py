from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.report import confusions
from pipeline.report.content import Content
from pipeline.stages.fit_head import FitSettings, fit_head
from tests.browser import opened
from tests.heads.standin import StandIn

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CLASSES = 200


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of 200 classes, in 40 families whose members are taken for each other."""
    rng = np.random.default_rng(0)
    family = np.repeat(rng.normal(size=(40, 12)), 5, axis=0)
    y = np.arange(CLASSES * 12) % CLASSES
    X = family[y] + 0.3 * rng.normal(size=(CLASSES, 12))[y] + 0.5 * rng.normal(size=(len(y), 12))
    cache = StandIn(X.astype(np.float32), y.astype(np.int32), tuple(f"kind {i:03d}" for i in range(CLASSES)))
    output = tmp_path_factory.mktemp("many") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["pipeline.stages.fit_head"], "open_cache", lambda path: cache)
        fit_head("c.h5", output, FitSettings(head="centroid", replicates=50, learning_curve=False, device="cpu"))
    return output / "report.html"


class Held:
    """The rows of a test split: classes by label, as a head predicts them."""

    held_out = "test"

    def __init__(self, confusion: NDArray[np.int64]) -> None:
        label, predicted = (np.repeat(axis, confusion.ravel()) for axis in np.indices(confusion.shape).reshape(2, -1))
        self.class_names = tuple(f"kind {i}" for i in range(len(confusion)))
        self.y, self.index = label, np.arange(len(label))
        self.results: dict[str, Any] = {
            "held_out": "test",
            "confusion": confusion,
            "predictions": {"test": np.eye(len(confusion))[predicted]},
        }

    def of(self, split: str) -> NDArray[np.int64]:
        return np.arange(len(self.y))


def held(k: int, **errors: int) -> Held:
    """Return ``k`` classes of nine rows each that are right, and errors by name: ``a1_2=3`` are 3 of 1 taken for 2."""
    confusion = np.diag(np.full(k, 9))
    for name, count in errors.items():
        confusion[tuple(int(i) for i in name[1:].split("_"))] = count
    return Held(confusion)


def places(rows: Held) -> tuple[Content, list[str]]:
    content = Content("lead")
    found = confusions.confusion_plots(content, rows, rows.results)  # type: ignore[arg-type]
    return content, [place["id"] for place in found]


def test_few_classes_keep_their_order() -> None:
    content, names = places(held(10, a9_0=5))
    assert names == ["confusion"]
    assert content.figures["confusion"]["full"] == [f"kind {i}" for i in range(10)]


def test_more_classes_stand_beside_those_they_are_taken_for() -> None:
    content, names = places(held(30, a29_0=5, a0_29=4))
    assert names == ["confusion"]
    shown = content.figures["confusion"]["full"]
    assert len(shown) == 30
    assert abs(shown.index("kind 29") - shown.index("kind 0")) == 1


def test_above_thirty_classes_groups_come_first_and_then_the_worst() -> None:
    content, names = places(held(200, a199_0=5, a7_150=4))
    assert names == ["confusion-groups", "confusion"]
    groups = content.figures["confusion-groups"]
    assert 10 <= len(groups["names"]) <= 30
    assert sum(map(sum, groups["matrix"])) == 200 * 9 + 9
    (table,) = content.tables
    members = [row[4]["text"].split(", ") for row in table["rows"]]
    assert sorted(name for of_group in members for name in of_group) == sorted(f"kind {i}" for i in range(200))
    assert any({"kind 0", "kind 199"} <= set(of_group) for of_group in members)
    assert {"kind 0", "kind 199", "kind 7", "kind 150"} <= set(content.figures["confusion"]["full"])
    assert len(content.figures["confusion"]["full"]) == 30


def test_thousands_of_classes_are_bounded() -> None:
    content, _ = places(held(1100, a1099_0=5))
    members = [row[4]["text"].split(", ") for row in content.tables[0]["rows"]]
    assert sum(map(len, members)) == 1000
    assert any({"kind 0", "kind 1099"} <= set(of_group) for of_group in members)
    assert len(content.figures["confusion-groups"]["names"]) <= 30


def test_the_worst_pairs_lead_to_their_images(many: Path) -> None:
    page = many.read_text(encoding="utf-8")
    (table,) = re.findall(r'<table id="pairs".*?</table>', page, re.DOTALL)
    links = re.findall(r'<a href="#(pair-\d+)">(kind \d+)</a>', table)
    assert len(links) == 6
    assert table.count("<tr>") == 31
    for place, label in links:
        (section,) = re.findall(rf'<section id="{place}">.*?</section>', page, re.DOTALL)
        assert f"<h2>{label} predicted as kind " in section
        assert f"label <b>{label}</b>" in section


def test_two_classes_and_no_errors_have_no_table_of_pairs() -> None:
    for rows in (held(2, a0_1=3), held(5)):
        content = Content("lead")
        confusions.add_pairs(content, None, rows, rows.results)  # type: ignore[arg-type]
        assert (content.tables, content.galleries) == ([], [])


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 390])
def test_two_hundred_classes_can_be_read(browser: Any, many: Path, width: int) -> None:
    with opened(browser, many, width) as page:
        page.wait_for_selector("#plot-confusion-groups .hm")
        for name in ("confusion-groups", "confusion"):
            names = page.locator(f"#plot-{name} .tick").all_text_contents()
            assert len(set(names)) >= (15 if width == 1200 else 5)
        page.locator("#pairs a").first.click()
        assert page.evaluate("location.hash") == "#pair-0"
        assert page.evaluate("document.querySelector('#pair-0').getBoundingClientRect().top") < 900
