from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.analysis.duplicates import find_duplicates
from pipeline.analysis.labels import LabelCheck
from pipeline.analysis.outliers import find_outliers
from pipeline.analysis.projection import map_cache
from pipeline.analysis.search import Search, search
from pipeline.report import galleries
from pipeline.selection.frames import frame
from tests.analysis.archive import Archive, archive
from tests.browser import opened, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)>'


@pytest.fixture(scope="module")
def cache() -> Archive:
    made: Archive = archive(120, images=True)
    made.label_names = ("ant", HOSTILE, "cat")
    made.images[11] = made.images[10]
    made.images[5] = made.images[5][:40]  # damaged
    del made.images[6]
    made.keys = made.keys.astype(object)
    made.keys[7] = HOSTILE + ".png"
    return made


def doubtful(cache: Archive) -> LabelCheck:
    rows = np.random.default_rng(0).permutation(len(cache))
    names = np.asarray(cache.label_names, dtype=object)
    table = {
        "key": cache.keys[rows],
        "given": names[cache.labels[rows]],
        "suggested": names[(cache.labels[rows] + 1) % 3],
        "quality": np.linspace(0, 1, len(rows)),
        "is_issue": np.arange(len(rows)) < 70,
    }
    return LabelCheck(frame(table), rows, 0.9, 0.01)


WRITERS: dict[str, Callable[[Path, Any], int]] = {
    "search": lambda path, cache: galleries.write_search_page(
        path, cache, search(cache, ["0.png", cache.keys[7]], k=6)
    ),
    "duplicates": lambda path, cache: galleries.write_duplicates_page(path, cache, find_duplicates(cache)),
    "outliers": lambda path, cache: galleries.write_outliers_page(path, cache, find_outliers(cache, threshold=1.0)),
    "labels": lambda path, cache: galleries.write_labels_page(path, cache, doubtful(cache)),
    "map": lambda path, cache: galleries.write_map_page(path, cache, map_cache(cache, "pca")),
}


@pytest.fixture(scope="module")
def written(cache: Archive, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, write in WRITERS.items():
        write(folder / f"{name}.html", cache)
    assert len(list(folder.iterdir())) == len(WRITERS)
    return {name: folder / f"{name}.html" for name in WRITERS}


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_page_needs_nothing_else_and_escapes_names(name: str, written: dict[str, Path]) -> None:
    page = written[name].read_text(encoding="utf-8")
    own = re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.DOTALL) if name == "map" else page
    assert HOSTILE not in own
    assert "<img src=x" not in own
    assert "http://" not in own
    assert "https://" not in own
    assert "data:image/jpeg;base64," in own
    assert len(page) < 6_000_000


def test_a_page_says_how_many_images_it_cannot_show(written: dict[str, Path]) -> None:
    for name, asked in (("labels", 94), ("map", 120)):  # two of all images cannot be read, and both labels are doubtful
        page = written[name].read_text(encoding="utf-8")
        found = re.search(r"(\d+) of the (\d+) images on this page cannot be read where the cache expects them", page)
        assert found is not None
        assert (int(found[1]), int(found[2])) == (2 if name == "map" else page.count("no image</div>"), asked)


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("search", r"2 queries to .* found 12 images; the nearest of each has a cosine of [\d.]+ to [\d.]+\."),
        ("duplicates", r"2 images show the same picture as another, in 1 group: 0 exact pairs, 1 near one by"),
        ("outliers", r"\d+ of 120 images stand out \(\d+ "),
        ("labels", r"70 of 120 labels look wrong; heads .* agree with its label in 90\.0%\."),
        ("map", r"120 images of .*, laid out by its first two principal components; the nearest .* in \d+%\."),
    ],
)
def test_a_page_begins_with_what_was_found(name: str, begins: str, written: dict[str, Path]) -> None:
    (lead,) = re.findall(r'<p class="lead">(.*?)</p>', written[name].read_text(encoding="utf-8"), re.DOTALL)
    assert re.match(begins, lead), lead


def test_a_text_called_as_a_key_has_its_own_images(tmp_path: Path) -> None:
    made: Any = archive(12, images=True)
    both = search(made, [made.keys[0], made.keys[1]], k=3)
    columns = both.columns | {"query": np.full(6, made.keys[0], dtype=object)}
    row = both.query_rows[:1].tolist()
    found = Search(columns, both.rows, (made.keys[0],) * 2, np.array([*row, -1]), texts=1)
    galleries.write_search_page(tmp_path / "both.html", made, found)
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert re.findall(r"cosine <b>(.*?)</b>", page) == [f"{value:.4f}" for value in columns["cosine"]]


def test_no_duplicates_and_one_query_are_said_plainly(tmp_path: Path) -> None:
    made: Any = archive(12, images=True)
    galleries.write_duplicates_page(tmp_path / "none.html", made, find_duplicates(made, use_pixels=False))
    galleries.write_search_page(tmp_path / "one.html", made, search(made, [made.keys[0]], k=3))
    page = (tmp_path / "none.html").read_text(encoding="utf-8")
    assert "No two images show the same picture, by their bytes and the cosine of embeddings." in page
    page = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert "1 query to " in page
    assert "found 3 images; the nearest has a cosine of 0." in page


def test_a_map_says_what_it_shows(cache: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = map_cache(cache, "pca")
    galleries.write_map_page(tmp_path / "all.html", cache, found)
    page = (tmp_path / "all.html").read_text()
    share = re.search(r"the nearest labelled neighbour of a point has its label in (\d+)%\.", page)
    assert share is not None
    assert int(share[1]) > 50
    assert "Zoom in, and points become images." in page
    monkeypatch.setattr(galleries, "MOST_ON_A_MAP", 30)
    galleries.write_map_page(tmp_path / "some.html", cache, found)
    shown = re.search(
        r"Zoom in, and (\d+) of them, drawn at random, become images", (tmp_path / "some.html").read_text()
    )
    assert shown is not None
    assert 28 <= int(shown[1]) <= 30
    found.table["label"] = ""
    galleries.write_map_page(tmp_path / "none.html", cache, found)
    assert "neighbour of a point" not in (tmp_path / "none.html").read_text()


def test_a_page_is_bounded(cache: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(galleries, "MOST_PICTURES", 9)
    galleries.write_labels_page(tmp_path / "labels.html", cache, doubtful(cache))
    page = (tmp_path / "labels.html").read_text()
    assert page.count("<figure") == 9
    assert "the 9 most doubtful" in page


def test_labels_that_look_wrong_stand_apart(cache: Any, tmp_path: Path) -> None:
    found = doubtful(cache)
    found.table.loc[80:100, "suggested"] = found.table.loc[80:100, "given"]
    galleries.write_labels_page(tmp_path / "labels.html", cache, found)
    page = (tmp_path / "labels.html").read_text()
    wrong, otherwise, agreeing = (part.count("<figure") for part in page.split('<section class="group"')[1:])
    assert (wrong, otherwise, agreeing) == (70, 24, 21)
    assert page.index("Labels that look wrong (70)") < page.index("The suggestion is the label")


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("name", list(WRITERS))
def test_a_page_renders_and_filters(name: str, width: int, browser: Any, written: dict[str, Path]) -> None:
    with opened(browser, written[name], width) as page:
        if name == "map":
            check_map(page)
        else:
            check_gallery(page, name)


def check_gallery(page: Any, name: str) -> None:
    shown = "[...document.querySelectorAll('figure')].filter(f => f.offsetParent !== null).length"
    before = page.evaluate(shown)
    assert before > 1
    page.evaluate("for (const i of document.images) i.loading = 'eager'")
    wait_until(page, "[...document.images].every(i => i.complete && i.naturalWidth)")
    page.fill("#filter", "no such thing")
    assert page.evaluate(shown) == 0
    page.fill("#filter", "cat" if name == "duplicates" else "ant")
    assert 0 < page.evaluate(shown) <= before
    page.fill("#filter", "")
    assert page.evaluate(shown) == before
    if name == "labels":
        given = "[...document.querySelector('section.group').querySelectorAll('figure')].map(f => f.dataset.given)"
        page.select_option("#order", "given")
        values = page.evaluate(given)
        assert values == page.evaluate("v => [...v].sort((a, b) => a.localeCompare(b))", values)
        page.select_option("#order", "rank")
        ranks = page.evaluate(
            "[...document.querySelector('section.group').querySelectorAll('figure')].map(f => +f.dataset.rank)"
        )
        assert ranks == sorted(ranks)


def check_map(page: Any) -> None:
    drawn = "n => dots.getContext('2d').getImageData(0, 0, dots.width, dots.height).data.some(v => v) === n"
    wait_until(page, drawn, arg=True)
    page.fill("#find", "cat")
    wait_until(page, "document.getElementById('count').textContent === '120 images, 40 marked'")
    page.select_option("#label", "0")
    wait_until(page, "document.getElementById('count').textContent.startsWith('40 images')")
    assert page.evaluate("points.names.filter((name, n) => seen(n)).length") == 1
    page.select_option("#label", "")
    page.fill("#find", "")
    wait_until(page, "document.getElementById('count').textContent === '120 images'")
    # Where the first point stands on the screen.
    place = page.evaluate(
        """() => {
            const box = plot.getBoundingClientRect();
            return [box.left + screenX(0), box.top + screenY(0)];
        }"""
    )
    page.mouse.move(place[0] - 3, place[1])
    page.mouse.move(place[0], place[1], steps=4)
    wait_until(page, "document.getElementById('key').textContent !== ''")
    assert page.evaluate("getComputedStyle(picture).backgroundImage").startswith('url("data:image/jpeg')
    check_zoom(page)


def check_zoom(page: Any) -> None:
    """Images take the place of their points when one zooms in, and give it back."""
    said = "document.getElementById('seen').textContent"
    assert page.evaluate(said) == "zoom in to see images"
    page.locator("#closer").click()
    wait_until(page, f"/^[0-9]+ shown as images$/.test({said})")
    some = int(page.evaluate(said).split()[0])
    assert 1 < some <= 118
    # A tile covers pixels that a point of six does not reach: the middle of its left half.
    covered = """() => {
        const visible = [...pictured].map(p => [screenX(p), screenY(p)]).filter(
            ([x, y]) => x > 60 && y > 60 && x < plot.clientWidth - 60 && y < plot.clientHeight - 60);
        const context = dots.getContext('2d');
        const opacity = (x, y) => context.getImageData(x * devicePixelRatio, y * devicePixelRatio, 1, 1).data[3];
        return visible.filter(([x, y]) => opacity(x - 12, y - 12) === 255).length;
    }"""
    assert page.evaluate(covered) > 0
    page.locator("#farther").click()
    wait_until(page, f"{said} === 'zoom in to see images'")
