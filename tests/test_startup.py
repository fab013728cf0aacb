"""What each command imports: a library that it does not need would make small jobs wait."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.stages.extract import extract
from pipeline.stages.fit_head import FitSettings, fit_head

SLOW = {
    *("torch", "torchvision", "timm", "openvino", "sklearn", "scipy", "pandas", "pyarrow", "jinja2", "matplotlib"),
    *("faiss", "fsspec", "joblib", "numba", "plotly", "transformers"),
}
"""Libraries that take long to import."""
SCIKIT_LEARN = {"sklearn", "scipy", "pandas", "pyarrow", "joblib"}
"""With what it imports itself."""
MAY_IMPORT = {
    "extract": {"openvino"},
    "predict": {"openvino"},
    "fit-head": {*SCIKIT_LEARN, "jinja2"},
    "search": set[str](),
    "compare": {"scipy"},
    "export": {"pandas", "pyarrow"},
    "info": set[str](),
}
CODE = """
import sys
from pipeline.cli import main
sys.argv = ["pipeline", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("IMPORTED", *sorted({name.partition(".")[0] for name in sys.modules}))
"""
PREDICT_ON_A_CACHE = """
import sys
from pipeline import open_cache
from pipeline.heads import load_head
run, cache = sys.argv[1:]
head, cache = load_head(run), open_cache(cache)
head.check_fingerprint(cache.fingerprint)
assert len(head.predict(cache.embeddings)) == len(cache)
print("IMPORTED", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.fixture(scope="module")
def work(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a cache, whose network is then converted, and two runs on it."""
    folder = tmp_path_factory.mktemp("startup")
    extract(str(image_folder), folder / "c.h5")
    for name in ("run", "other"):
        fit_head(folder / "c.h5", folder / name, FitSettings(report=False, learning_curve=False, replicates=50))
    return folder


def imported_by(code: str, arguments: list[str]) -> set[str]:
    """Return the slow libraries that some code imports."""
    root = Path(__file__).parent.parent
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=root)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.splitlines()[-1].split()[1:]) & SLOW


def test_predicting_on_a_cache_imports_only_numpy(work: Path) -> None:
    assert imported_by(PREDICT_ON_A_CACHE, [str(work / "run"), str(work / "c.h5")]) == set()


@pytest.mark.parametrize("command", sorted(MAY_IMPORT))
def test_a_command_imports_nothing_else(command: str, work: Path, image_folder: Path, tmp_path: Path) -> None:
    arguments = {
        "extract": [str(image_folder), "-o", str(tmp_path / "c.h5")],
        "predict": [str(work / "run"), str(image_folder), "-o", str(tmp_path / "p.csv")],
        "fit-head": [str(work / "c.h5"), "-o", str(tmp_path / "run")],
        "search": [str(work / "c.h5"), "ant/00.png", "-o", str(tmp_path / "s.csv")],
        "compare": [str(work / "run"), str(work / "other")],
        "export": [str(work / "c.h5"), "--to", "npy", "-o", str(tmp_path / "e.npy")],
        "info": [str(work / "c.h5")],
    }[command]
    assert imported_by(CODE, [command, *arguments]) <= MAY_IMPORT[command]
