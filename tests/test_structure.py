"""The direction of imports, and what must not be imported at all."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pipeline"
FAMILIES = ("sources", "backbones", "engines", "heads")
# engines take a Backbone, which is what they run: its type is the one thing a family may know of another.
ALLOWED = {("engines", "backbones.base")}
# Stages, and what stands on the parts as stages do.
STAGES = ("cli", "extract", "fit_head", "predict", "finetune", "selection", "convert", "export", "image_embedder")
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_families_do_not_import_each_other() -> None:
    for file in FILES:
        family = file.relative_to(PACKAGE).parts[0]
        if family not in FAMILIES:
            continue
        for name in imports(file):
            other = name.removeprefix("pipeline.")
            if name.startswith("pipeline.") and other.split(".")[0] in set(FAMILIES) - {family}:
                assert (family, other) in ALLOWED, f"{file} imports {name}"


def test_only_the_cache_knows_hdf5() -> None:
    users = {file.relative_to(PACKAGE) for file in FILES if "h5py" in {n.split(".")[0] for n in imports(file)}}
    # Images may lie in an HDF5 file as in any other archive; that source knows nothing of caches.
    images = Path("sources", "hdf5.py")
    assert images in users
    assert {file.parts[0] for file in users - {images}} == {"cache"}
    assert not any(name.startswith("pipeline.cache") for name in imports(PACKAGE / images))


def test_parts_do_not_import_stages_or_the_command_line() -> None:
    stages = {f"pipeline.{name}" for name in STAGES}
    parts = [
        f
        for f in FILES
        if f.relative_to(PACKAGE).parts[0] in (*FAMILIES, "cache", "decode.py", "preprocess.py", "errors.py")
    ]
    assert len(parts) > 20
    for file in parts:
        assert not imports(file) & stages, file


def test_only_the_command_line_prints() -> None:
    for file in FILES:
        if (
            file.parent.name == "cli" or file.name == "sandbox.py"
        ):  # the sandbox is a process of its own that answers on standard output
            continue
        calls = [
            n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        ]
        assert "print" not in {call.func.id for call in calls if isinstance(call.func, ast.Name)}, file


@pytest.mark.parametrize(
    "code",
    [
        "import pipeline",
        "from pipeline import open_cache",
        "import pipeline; pipeline.open",
        "import pipeline.selection.export",
        "import pipeline.cache.info",
        "import pipeline.cache.verify",
        "import pipeline.cli",
        "from pipeline.heads import load_head",
        "import pipeline.decoding.worker",
    ],
)
def test_torch_is_not_imported_where_it_is_not_needed(code: str) -> None:
    check = f"{code}; import sys; assert not {{'torch', 'sklearn', 'timm'}} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=PACKAGE.parent)


def test_pandas_is_not_imported_to_open_a_cache() -> None:
    check = "import pipeline; pipeline.open; import sys; assert not {'pandas', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=PACKAGE.parent)


def test_help_is_quick() -> None:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "pipeline", "--help"], check=True, stdout=subprocess.DEVNULL, cwd=PACKAGE.parent
        )
        times.append(time.perf_counter() - started)
    assert min(times) < 0.3
