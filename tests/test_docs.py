"""Every code block of README and docs runs.

A block is run where its language is ``console`` (the lines after ``$``) or ``python``; those of a page run in turn, in
a folder with small images in it. One that cannot run says why in a comment on the line above: ``<!-- not run: … -->``.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.cli import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S
)
SHOWN = {"", "text", "julia", "matlab", "r"}
"""Languages that are only looked at here; R has a test of its own."""
COMMANDS = ("$ ", "pipeline ", "make ", "pip ", "python ")
SLOW = {"archive.md", "backbones.md", "finetuning.md", "folder.md", "questions.md"}
"""Pages whose commands take longer than every run of the tests has."""
WIDTH = 100
NOT_WRAPPED = {"performance-heads.md"}
"""Pages that are still wider."""
CLASSES = (3, 4, 7)
IMAGES_OF_A_CLASS = 12


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    reason: str | None
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["language"], found["code"], found["reason"], text.count("\n", 0, found.start("language")) + 1)
        for found in BLOCK.finditer(text)
    ]


def commands(code: str) -> list[str]:
    """Return the lines after ``$``, each with those it is continued on."""
    joined = code.replace("\\\n", " ")
    return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


RUNNABLE = [
    page for page in PAGES if any(b.reason is None and b.language in ("console", "python") for b in blocks(page))
]


def test_no_block_is_missed() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(blocks(page)) * 2 == len(re.findall(r"^ *```", text, re.M)), (
            f"{page}: a block that is not closed, or indented"
        )
        assert text.count("<!-- not run") == sum(b.reason is not None for b in blocks(page)), f"{page}: a stray comment"
        for block in blocks(page):
            where = f"{page}:{block.line}"
            assert block.language in {*SHOWN, "console", "python"}, where
            if block.language == "":
                assert not any(line.startswith(COMMANDS) for line in block.code.splitlines()), f"{where}: say console"
            if block.language == "console":
                assert commands(block.code), f"{where}: nothing after $"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a few of scikit-learn's digits, and the cache that the command makes of them."""
    import numpy as np
    from sklearn.datasets import load_digits

    root = tmp_path_factory.mktemp("docs") / "data"
    data = load_digits()
    for k in CLASSES:
        folder = root / "digits" / str(k)
        folder.mkdir(parents=True)
        for i in np.flatnonzero(data.target == k)[:IMAGES_OF_A_CLASS].tolist():
            Image.fromarray(np.round(data.images[i] * (255 / 16)).astype(np.uint8)).save(folder / f"{i:05d}.png")
    made = CliRunner().invoke(cli, ["extract", str(root / "digits"), "-o", str(root / "digits.h5")])
    assert made.exit_code == 0, made.output
    return root


@pytest.fixture
def desk(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder that has what the pages speak of; images extracted there already are not computed again."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for name in ("data/digits", "photos"):
        Path(name).symlink_to(digits / "digits")
        shutil.copy(digits / "digits.h5", f"{name}.h5")
    Path("new").symlink_to(digits / "digits" / "7")
    Path("scripts").symlink_to(ROOT / "scripts")
    images = sorted(Path("photos").glob("*/*.png"))
    with Path("list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *((path, path.parent.name) for path in images[::5])])
    for k in range(10):
        with tarfile.open(f"shards-{k}.tar", "w") as archive:
            for path in images[k::10]:
                archive.add(path, path.relative_to("photos"))
    return tmp_path


def run(command: str) -> None:
    """Run a line of a console block; ``make`` only shows what it would do."""
    words = shlex.split(command, comments=True)
    if words[0] == "pipeline":
        done = CliRunner().invoke(cli, words[1:], catch_exceptions=False)
        assert done.exit_code == 0, f"{command}: {done.output}"
        return
    if words[0] == "make":
        words = ["make", "--dry-run", "--directory", str(ROOT), *words[1:]]
    subprocess.run([sys.executable if word == "python" else word for word in words], check=True, stdout=subprocess.PIPE)


@pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")  # umap, of a part that nobody asks for
@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=str(page.relative_to(ROOT)), marks=[pytest.mark.slow] if page.name in SLOW else [])
        for page in RUNNABLE
    ],
)
def test_the_blocks_of_a_page_run(page: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.reason is not None:
            continue
        if block.language == "console":
            for command in commands(block.code):
                run(command)
        elif block.language == "python":
            # Lines before it, so that a traceback names the line of the page.
            exec(compile("\n" * block.line + block.code, str(page), "exec"), names)


def test_a_block_that_fails_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="found nothing"):
        run("pipeline info photos.h5  # a comment")
    with pytest.raises(subprocess.CalledProcessError):
        run("make no-such-target")


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]*)", page.read_text(encoding="utf-8")):
            assert not target or (page.parent / target).exists(), f"{page}: {target}"


def test_lines_are_short() -> None:
    for page in PAGES:
        if page.name in NOT_WRAPPED:
            continue
        text = BLOCK.sub(lambda block: "\n" * block[0].count("\n"), page.read_text(encoding="utf-8"))
        for number, line in enumerate(text.splitlines(), 1):
            shown = re.sub(r"\]\([^)]*\)", "]", line)  # an address cannot be wrapped
            assert len(shown) <= WIDTH, f"{page}:{number}: {len(shown)} characters, {WIDTH} are the most"


def test_the_command_reference_is_up_to_date() -> None:
    from scripts.make_cli_reference import REFERENCE, reference

    assert REFERENCE.read_text(encoding="utf-8") == reference(), "run make docs"


@pytest.mark.slow
@pytest.mark.usefixtures("desk")
def test_r_reads_what_python_reads() -> None:
    import pipeline

    rscript = shutil.which("Rscript")
    if rscript is None or subprocess.run([rscript, "-e", "library(rhdf5)"], capture_output=True).returncode:
        pytest.skip("needs R with rhdf5 (Debian: apt-get install r-bioc-rhdf5)")
    code = next(b.code for b in blocks(ROOT / "docs" / "other-languages.md") if b.language == "r")
    tell = 'cat(dim(X), sprintf("%.9g", X[7, 1:5]), table(y), sep = "\\n")'
    told = subprocess.run([rscript, "-e", code + tell], capture_output=True, text=True, check=True, env={**os.environ})
    lines = told.stdout.split()
    photos = pipeline.open("photos.h5")
    assert lines[:2] == [str(len(photos)), str(photos.width)]
    assert [float(value) for value in lines[2:7]] == pytest.approx(photos.embeddings[6, :5].tolist(), rel=1e-6)
    assert lines[7:] == [str(IMAGES_OF_A_CLASS)] * len(CLASSES)
