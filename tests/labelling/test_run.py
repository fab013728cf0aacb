"""From labels to a run: the table is one that the other commands read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.cache import open_cache
from pipeline.errors import SourceError
from pipeline.fitting.settings import FitSettings
from pipeline.heads import load_head
from pipeline.labelling.session import open_session
from pipeline.stages.finetune import _rows_of_run
from pipeline.stages.fit_head import fit_head
from tests.cli.run import run_command
from tests.labelling.sample import make_digits, targets

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 200
QUICK: dict[str, Any] = {"Cs": (0.01,), "replicates": 50, "learning_curve": False, "report": False, "device": "cpu"}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a cache without labels, and a table of most of them and of the whole audit."""
    root = tmp_path_factory.mktemp("run")
    path = make_digits(root / "data", COUNT)
    right = targets(COUNT)
    with open_session(open_cache(path), root / "labels.csv") as session:
        rows = [*np.flatnonzero(~session.held_back).tolist()[:120], *session.order.tolist()]
        for name in sorted(set(right)):
            some = [n for n in rows if right[n] == name]
            session.act({"do": "label", "rows": some, "value": name}, seen=session.labels.actions)
    return root


@pytest.mark.slow
def test_a_head_is_fitted_on_the_table_and_measured_on_the_audit(labelled: Path, tmp_path: Path) -> None:
    table = str(labelled / "labels.csv")
    result = fit_head(labelled / "data/digits.h5", tmp_path / "run", FitSettings(labels=table, **QUICK))
    assert result.metrics["test"]["rows"] == COUNT // 5
    assert result.metrics["test"]["accuracy"]["value"] > 0.8
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["rows"] == {"train": 120, "val": 0, "test": COUNT // 5}
    assert run["settings"]["labels"] == table
    head = load_head(tmp_path / "run")
    assert set(head.class_names) == set(targets(COUNT))
    # Fine-tuning starts from the same rows and labels.
    rows = _rows_of_run(open_cache(labelled / "data/digits.h5"), tmp_path / "run", print)
    assert len(rows.of("train")) == 120
    assert [rows.class_names[code] for code in rows.y] == [targets(COUNT)[n] for n in rows.index]


def test_the_command_takes_the_table(labelled: Path, tmp_path: Path) -> None:
    cache = labelled / "data/digits.h5"
    options = ["--labels", labelled / "labels.csv", "--C", "0.01", "--no-report"]
    done = run_command("fit-head", cache, "-o", tmp_path / "run", *options)
    assert done.exit_code == 0, done.stderr
    assert f"on {COUNT // 5} rows" in done.stderr
    assert run_command("fit-head", cache, "-o", tmp_path / "none").exit_code == 1


def test_a_table_of_other_images_is_refused(labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("key,label\nx.png,a\n")
    with pytest.raises(SourceError, match="keys of the images"):
        fit_head(
            labelled / "data/digits.h5",
            tmp_path / "run",
            FitSettings(labels=str(tmp_path / "other.csv"), **QUICK),
        )
    assert not (tmp_path / "run").exists()


def test_merging_is_a_command(labelled: Path, tmp_path: Path) -> None:
    cache, table = labelled / "data/digits.h5", tmp_path / "mine.csv"
    done = run_command("label", cache, "-o", table, "--merge", labelled / "labels.csv")
    assert done.exit_code == 0, done.stderr
    assert "160 labels added" in done.stderr
    again = run_command("label", cache, "-o", table, "--merge", labelled / "labels.csv")
    assert "kappa 1.000 on 160 images" in again.stderr
    assert table.read_text().count("\n") == 161
    refused = run_command("label", cache, "-o", table, "--merge", tmp_path / "none.csv")
    assert refused.exit_code == 1
    assert refused.stderr.splitlines()[-1].startswith("error: cannot read the table")
