"""The page in headless Chromium, at two widths, by keyboard and by mouse; it takes the tutorial's pictures."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser import violations, wait_until
from tests.labelling.sample import make_digits

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.browser
PICTURES = os.environ.get("LABEL_PICTURES")
"""A folder for the pictures of docs/tutorials/label.md."""


@contextlib.contextmanager
def served(cache: Path, *options: str) -> Iterator[str]:
    command = [sys.executable, "-m", "pipeline", "label", str(cache), "--no-browser", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        found = next(match[0] for line in server.stdout if (match := re.search(r"http://\S+", line)))
        try:
            yield found
        finally:  # a test that fails would wait for the server otherwise
            server.terminate()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with served(make_digits(tmp_path / "data", 300)) as found:
        yield found


class Page:
    """An open page, and how many actions were done on it."""

    def __init__(self, browser: Any, address: str, width: int) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 760})
        self.errors: list[str] = []
        self.actions = 0
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        wait_until(self.page, "document.documentElement.dataset.ready === 'yes'")

    def press(self, *keys: str, acts: bool = False) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        if acts:
            self.acted()

    def acted(self) -> None:
        self.actions += 1
        wait_until(self.page, "n => document.documentElement.dataset.actions === n", str(self.actions))

    def title(self, text: str) -> None:
        wait_until(self.page, "t => document.getElementById('what').textContent.includes(t)", text)

    def is_accessible(self) -> None:
        assert violations(self.page) == []

    def labelled(self) -> int:
        return int(re.search(r"(\d+) of", self.page.inner_text("#title"))[1])  # type: ignore[index]

    def picture(self, name: str) -> None:
        if PICTURES:
            self.page.wait_for_timeout(500)
            self.page.screenshot(path=Path(PICTURES) / f"label-{name}.jpg", type="jpeg", quality=60)


@pytest.mark.parametrize("width", [1400, 390])
def test_a_person_labels_with_keyboard_and_mouse(browser: Any, address: str, width: int) -> None:
    page = Page(browser, address, width)
    wide = width > 1000
    page.is_accessible()
    if wide:
        page.picture("groups")
    for name in ("round", "straight"):
        page.press("g")
        page.title("Group 1 ")
        wait_until(page.page, "!document.querySelector('.tile .own')")  # the group that has no label yet
        page.press("c", *name, "Enter", acts=True)
    done = page.labelled()
    page.press("u", acts=True)
    assert page.labelled() < done
    page.press("r", acts=True)
    assert page.labelled() == done
    for key, title in (("o", "Unlike"), ("b", "with a label"), ("d", "Labels that"), ("y", "Audit"), ("q", "unsure")):
        page.press(key)
        page.title(title)
    if wide:
        page.picture("unsure")
    page.is_accessible()
    page.page.locator(".tile").nth(1).click()
    page.page.locator(".tile").nth(3).click(modifiers=["Shift"])
    assert page.page.inner_text("#chosen").startswith("3 of")
    page.page.locator("#classes button").first.click()
    page.acted()
    assert page.labelled() == done + 3
    page.press("y")
    page.title("Audit")
    page.press("1", acts=True)
    page.press("2", acts=True)
    wait_until(page.page, "document.getElementById('figure').textContent.includes('2 audited')")
    page.press("Shift+Digit1")
    page.title("Taken for 'round'")
    if wide:
        page.picture("class")
    page.press("Enter", acts=True)
    page.press("z")
    wait_until(page.page, "document.getElementById('zoom').open && document.getElementById('large').naturalWidth > 0")
    page.is_accessible()
    page.press("l")
    page.title("Like ")
    page.press("?")
    wait_until(page.page, "document.getElementById('keys').open")
    page.is_accessible()
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.errors == []
    page.page.close()


def test_label_sets_and_numbers_are_given_by_keyboard(browser: Any, tmp_path: Path) -> None:
    cache = make_digits(tmp_path / "data", 60)
    with served(cache, "--task", "multilabel", "-o", str(tmp_path / "sets.csv")) as address:
        page = Page(browser, address, 1400)
        page.press("g")
        page.title("Group 1 ")
        page.press("Escape")
        page.press("c", *"round", "Enter", acts=True)  # the image under the cursor, and on to the next
        page.press("ArrowLeft", "c", *"open", "Enter", acts=True)
        assert page.page.inner_text("#tile-0 .text") == "2open|round"
        page.press("ArrowLeft", "1", acts=True)  # a label that it has is taken away
        assert page.page.inner_text("#tile-0 .text") == "2open"
        page.press("ArrowLeft", "0", acts=True)
        assert page.page.inner_text("#tile-0 .text") == "|"  # the empty set, as tables write it
        assert page.errors == []
        page.page.close()
    assert (tmp_path / "sets.csv").read_text().splitlines()[0].startswith("key,label")
    with served(cache, "--task", "regression", "-o", str(tmp_path / "numbers.csv")) as address:
        page = Page(browser, address, 1400)
        page.press("g")
        page.title("Group 1 ")
        page.press("Escape")
        for number in ("1.5", "-2,25"):
            page.press("c", *number, "Enter", acts=True)
        page.press("ArrowLeft", "c", *"many", "Enter")  # at an image with a label, which stays
        wait_until(page.page, "document.getElementById('notice').textContent.includes('Expected a number')")
        assert page.labelled() == 2
        page.press("q")
        page.title("unlike each other")
        assert violations(page.page) == []
        assert page.errors == []
        page.page.close()
    rows = [line.split(",") for line in (tmp_path / "numbers.csv").read_text().splitlines()[1:]]
    assert [float(row[1]) for row in rows] == [1.5, -2.25] or [float(row[1]) for row in rows] == [-2.25, 1.5]
