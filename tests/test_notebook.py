"""The notebook of the tutorials runs from its first cell to its last, in a kernel as a reader's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(ROOT.glob("docs/**/*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_has_no_outputs(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.slow  # starts a kernel, torch and an engine
@pytest.mark.filterwarnings("ignore")  # of the libraries that start kernels
def test_the_tutorial_ends_in_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "docs/tutorials/notebook.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(CHECK))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [text for cell in notebook.cells if cell.cell_type == "code" for text in texts(cell)]
    assert any("60 of 60 images done" in text for text in shown)
    assert any('<a href="digits-head/report.html"' in text for text in shown)
    assert shown[-1] == "10 True"


CHECK = """
right = [str(digits.target[int(Path(key).stem)]) for key in predictions.index]
print(len(predictions), (predictions["predicted"] == right).mean() > 0.7)
"""


def texts(cell: Any) -> list[str]:
    """Return what the outputs of a cell show, as HTML where they have it."""
    shown = []
    for output in cell.outputs:
        data = output.get("data", {})
        shown.append(data.get("text/html") or data.get("text/plain") or output.get("text", ""))
    return [text.strip() for text in shown]
