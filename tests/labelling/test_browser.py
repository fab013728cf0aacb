"""The page in headless Chromium, at two widths, by keyboard and by mouse; it takes the tutorial's pictures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser import wait_until
from tests.labelling.sample import make_digits

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.browser
PICTURES = os.environ.get("LABEL_PICTURES")
"""A folder for the pictures of docs/tutorials/label.md."""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "pipeline", "label", str(make_digits(tmp_path / "data", 300)), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        found = next(match[0] for line in server.stdout if (match := re.search(r"http://\S+", line)))
        yield found
        server.terminate()


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
    page.press("l")
    page.title("Like ")
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.errors == []
    page.page.close()
