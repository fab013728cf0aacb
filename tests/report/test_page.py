from __future__ import annotations

import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.stages.fit_head import FitSettings, fit_head, fit_heads
from tests.browser import opened, violations
from tests.heads.standin import StandIn, blobs

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)>'


class WithImages(StandIn):
    """Every second image is there; one is damaged."""

    def image_bytes(self, row: int) -> bytes | None:
        import io

        from PIL import Image

        if row % 2:
            return None
        buffer = io.BytesIO()
        Image.new("RGB", (40, 30), (row % 255, 80, 120)).save(buffer, "PNG")
        return buffer.getvalue()[: 20 if row % 4 else None]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    X, y = blobs(400, spread=3.0)
    keys = np.asarray([f"{HOSTILE[:30]}{i}.png" for i in range(400)])
    cache = WithImages(X, y.astype(np.int32), ("ant", HOSTILE, "10"), keys=keys)
    output = tmp_path_factory.mktemp("report") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["pipeline.stages.fit_head"], "open_cache", lambda path: cache)
        fit_head("stand-in.h5", output, FitSettings(replicates=200, device="cpu"))
    return output / "report.html"


def test_the_page_needs_nothing_else_and_escapes_names(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    own = re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.DOTALL)  # without the script that draws
    assert "onerror=alert" not in own.replace("&lt;img src=x onerror=alert(1)&gt;", "").replace(
        "\\u003cimg src=x onerror=alert(1)\\u003e", ""
    )
    assert "http://" not in own
    assert "https://" not in own
    assert own.count("data:image/jpeg;base64,") > 5
    assert "no image" in own
    assert len(page) < 300_000


def test_the_page_says_how_many_images_it_cannot_show(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    unread, asked = page.count('<div class="gone">no image</div>'), page.count("<figure>")
    assert 0 < unread < asked
    assert f"{unread} of the {asked} images on this page cannot be read where the cache expects them." in page


@pytest.fixture(scope="module")
def other_reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of numbers and of label sets, with a summary of both targets."""
    X, y = blobs(300)
    cache = WithImages(X, y.astype(np.int32), ("ant", HOSTILE, "10"))
    cache.columns[HOSTILE] = X[:, 0].astype(np.float64)
    cache.columns["tags"] = np.asarray([f"{HOSTILE}|b", "b", HOSTILE])[y]
    output = tmp_path_factory.mktemp("reports")
    settings = FitSettings(replicates=200, device="cpu", Cs=(0.1,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["pipeline.stages.fit_head"], "open_cache", lambda path: cache)
        ridge = replace(settings, learning_curve=False, head="ridge", Cs="auto")
        fit_heads("c.h5", output / "several", ["label", HOSTILE], ridge)
        fit_head("c.h5", output / "numbers", replace(settings, target=HOSTILE))
        fit_head("c.h5", output / "labels", replace(settings, target="tags", task="multilabel"))
    return {name: output / name / "report.html" for name in ("several", "numbers", "labels")}


@pytest.mark.parametrize("name", ["several", "numbers", "labels"])
def test_the_other_pages_escape_names_too(other_reports: dict[str, Path], name: str) -> None:
    page = other_reports[name].read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert 'title="owned"' not in page
    assert "&lt;/script&gt;" in page


def test_the_page_of_several_targets_begins_with_what_was_measured(other_reports: dict[str, Path]) -> None:
    page = other_reports["several"].read_text(encoding="utf-8")
    (lead,) = re.findall(r'<p class="lead">(.*?)</p>', page, re.DOTALL)
    assert re.match(r"label, test: accuracy \d\.\d{4} .*; .*, test: R² .* rows\.$", lead)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize(
    ("name", "table", "hovers"), [("numbers", "parts", "predicted"), ("labels", "labels", "precision")]
)
def test_the_other_pages_render_and_sort(
    browser: Any, other_reports: dict[str, Path], name: str, table: str, hovers: str, width: int
) -> None:
    with opened(browser, other_reports[name], width) as page:
        page.wait_for_selector(f"#plot-{hovers} .point")
        assert page.locator(".plot svg").count() >= 2
        column = f"[...document.querySelectorAll('#{table} tbody tr')].map(r => +r.cells[2].dataset.value)"
        for reverse in (False, True):
            page.locator(f"#{table} th").nth(2).locator("button").click()
            assert page.evaluate(column) == sorted(page.evaluate(column), reverse=reverse)
    with opened(browser, other_reports["several"], width) as page:
        assert page.locator("section").count() == 2
        page.locator("section a").nth(1).click()
        page.wait_for_selector("#plot-predicted .point")


@pytest.mark.browser
def test_every_axis_has_several_round_ticks(browser: Any, report: Path) -> None:
    cases: list[tuple[str, list[float]]] = [
        ("{}, -1.9, 9.6, 5", [0, 2.5, 5, 7.5]),
        ("{whole: true}, 0, 3.2, 8", [0, 1, 2, 3]),
        ("{log: true}, 2e-3, 5e4, 9", [0.01, 0.1, 1, 10, 100, 1000, 10_000]),
        ("{log: true}, 8, 400, 5", [10, 100]),
        ("{log: true}, 40, 300, 5", [50, 100, 200]),
        ("{log: true}, 2.3, 8.5, 5", [3, 4, 5, 6, 7, 8]),
        ("{log: true}, 4.1, 4.85, 4", [4.2, 4.4, 4.6, 4.8]),
    ]
    with opened(browser, report, 1200) as page:
        for asked, expected in cases:
            found = page.evaluate(f"ticks({asked}).map(t => t[0])")
            assert found == pytest.approx(expected), asked
        assert page.evaluate("range({most: 1}, [1, 1])") == pytest.approx([0.95, 1])


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_renders_sorts_and_hovers(browser: Any, report: Path, width: int) -> None:
    with opened(browser, report, width) as page:
        page.wait_for_selector("#plot-confusion .hm")
        assert page.locator(".plot svg").count() >= 3
        column = "[...document.querySelectorAll('#classes tbody tr')].map(r => +r.cells[2].dataset.value)"
        head = page.locator("#classes th").nth(2)
        head.locator("button").click()
        assert page.evaluate(column) == sorted(page.evaluate(column))
        assert head.get_attribute("aria-sort") == "ascending"
        head.locator("button").click()
        assert page.evaluate(column) == sorted(page.evaluate(column), reverse=True)
        page.locator("#plot-confusion").scroll_into_view_if_needed()
        box = page.locator("#plot-confusion .hm").bounding_box()
        page.mouse.move(box["x"] + 4, box["y"] + 4)
        page.wait_for_selector("#tip", state="visible")
        assert page.locator("#tip").text_content().startswith("label ant\npredicted ant\n")
        broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
        assert page.evaluate(broken) == 0


@pytest.mark.browser
def test_a_printed_page_shows_whole_tables_with_their_heads(browser: Any, report: Path) -> None:
    with opened(browser, report, 1200) as page:
        page.wait_for_selector("#plot-confusion .hm")
        page.emulate_media(media="print")
        boxes = "[...document.querySelectorAll('.scroll')].map(b => [getComputedStyle(b).maxHeight, b.style.maxHeight])"
        assert page.evaluate(boxes)
        assert {height for pair in page.evaluate(boxes) for height in pair if height} == {"none"}
        # A button would be blank where a page repeats the head of a table.
        assert page.evaluate("getComputedStyle(document.querySelector('th button')).display") == "contents"
        figures = "[...document.querySelectorAll('section:has(> .plot)')].map(s => getComputedStyle(s).breakInside)"
        assert set(page.evaluate(figures)) == {"avoid"}
        assert page.pdf().startswith(b"%PDF")
        page.emulate_media(media="screen")


@pytest.mark.browser
def test_the_check_of_accessibility_finds_what_is_wrong(browser: Any) -> None:
    page = browser.new_page()
    page.set_content("<html lang=en><title>t</title><main><h1>h</h1><img src=''><p style='color:#ddd'>pale</p></main>")
    assert sorted(line.split(":")[0] for line in violations(page)) == ["color-contrast", "image-alt"]
    page.close()
