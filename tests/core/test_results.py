"""Results as they are shown, and tables of predictions as data frames."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.core.results import Result, figures_of, page_of, read_predictions

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd


@dataclass(repr=False)
class Shown(Result):
    lines: list[str]
    page: Path | None = None
    figures: dict[str, Any] = field(default_factory=dict)

    def headlines(self) -> list[str]:
        return self.lines

    @property
    def report(self) -> Path | None:
        return self.page

    def _figures(self) -> dict[str, Any]:
        return self.figures

    def to_pandas(self) -> pd.DataFrame:
        raise NotImplementedError


def test_a_result_prints_its_lines() -> None:
    assert repr(Shown(["one", "two"])) == "one\ntwo"
    assert Shown(["one", "two"])._repr_html_() == "<div>one<br>two</div>"


def test_names_cannot_become_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / 'a "run" & <b>' / "report.html"
    figures = {"<i>": {"value": 0.5, "low": None, "high": 1.0}}
    shown = Shown(["<script>"], page, figures)._repr_html_()
    assert "&lt;script&gt;" in shown
    assert 'href="a%20%22run%22%20%26%20%3Cb%3E/report.html"' in shown
    assert "<th>&lt;i&gt;</th><td>0.5000</td><td></td><td>1.0000</td>" in shown


def test_a_name_whose_bytes_are_not_utf_8_can_be_printed() -> None:
    for text in (repr(Shown(["\udcff.png"])), Shown(["\udcff.png"])._repr_html_()):
        assert r"\xff.png" in text
        text.encode()


def test_figures_are_those_with_an_interval() -> None:
    figure = {"value": 0.5, "low": 0.4, "high": 0.6}
    undefined = {"value": None, "low": None, "high": None}
    metrics = {
        "test": {"rows": 9, "log_loss": figure, "r2": undefined, "per_class": {"a": figure}},
        "other": {"x": figure},
    }
    assert figures_of(metrics) == {"test log loss": figure}


def test_a_page_that_was_not_written_is_none(tmp_path: Path) -> None:
    assert page_of(tmp_path, "report.html") is None
    (tmp_path / "report.html").touch()
    assert page_of(tmp_path, "report.html") == tmp_path / "report.html"


LINES = [
    ["key", "predicted", "p_NA", "p_1", "error"],
    ["a\nb.png", "NA", "0.75", "0.25", ""],
    ["\udcff,.png", "", "", "", "cut off"],
    ["007", "1", "1e-07", "1", ""],
]


@pytest.mark.parametrize("in_memory", [True, False])
def test_names_stay_the_text_they_are(in_memory: bool, tmp_path: Path) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(LINES)
    path = tmp_path / "p.csv"
    path.write_bytes(buffer.getvalue().encode("utf-8", "surrogateescape"))
    table = read_predictions(io.StringIO(buffer.getvalue(), newline="") if in_memory else path, numeric=False)
    assert table.index.tolist() == ["a\nb.png", r"\xff,.png", "007"]
    assert table["predicted"].tolist() == ["NA", "", "1"]
    assert table["error"].tolist() == ["", "cut off", ""]
    assert table["p_NA"].tolist()[::2] == [0.75, 1e-07]
    assert np.isnan(table["p_1"].iloc[1])


def test_predicted_numbers_are_numbers() -> None:
    table = read_predictions(
        io.StringIO("key,split,label,predicted,group\n1,test,2,2.5,7\n2,test,nan,,8\n"), numeric=True
    )
    assert table["predicted"].dtype == table["label"].dtype == np.float64
    assert table["predicted"].iloc[0] == 2.5
    assert table["predicted"].isna().tolist() == [False, True]
    assert table["group"].tolist() == ["7", "8"]
