"""A page in headless Chromium, and what must hold of every page."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

CHROMIUM = ("/usr/bin/chromium", "/usr/bin/chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--no-first-run",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
"""Without a GPU, and with WebGL all the same."""


@contextlib.contextmanager
def started() -> Iterator[Any]:
    """Give a browser; skip the test where there is none."""
    sync_api: Any = pytest.importorskip("playwright.sync_api")
    chromium = next((path for path in CHROMIUM if Path(path).exists()), None)
    if chromium is None:
        pytest.skip("needs Debian's chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Any, path: Path, width: int) -> Iterator[Any]:
    """Open a page of ours.

    At the end it has reported no error, fetched nothing, run no one's script, fits, and
    passes axe-core's check.
    """
    page = browser.new_page(viewport={"width": width, "height": 900})
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(path.as_uri())
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not (found := violations(page)), "\n".join(found)
    assert page.title() != "owned"
    assert errors == []
    assert [url for url in fetched if not url.startswith(("file:", "data:", "blob:"))] == []
    page.close()


def violations(page: Any) -> list[str]:
    """Return what axe-core's accessibility check finds wrong with a page as it is shown: a line for each element."""
    axe = pytest.importorskip("axe_playwright_python")
    script = Path(axe.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    # Evaluated: the page's policy forbids further script elements.
    page.evaluate(f"() => {{ {script} }}")
    found = page.evaluate("async () => (await axe.run()).violations")
    return [f"{rule['id']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]]


def wait_until(page: Any, expression: str, arg: Any = None) -> None:
    """Wait until a JavaScript expression is true; the page's policy forbids Playwright's own wait, which uses eval."""
    for _ in range(300):
        if page.evaluate(expression, arg):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"not within 30 s: {expression}")
