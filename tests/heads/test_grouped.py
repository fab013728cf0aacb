"""Answers for groups, batch by batch, as a fit gives them for all rows at once."""

from __future__ import annotations

import csv
import io
import sys
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.errors import HeadError
from pipeline.heads import load_head
from pipeline.heads.grouped import GroupAnswers, Grouping
from pipeline.heads.saved import GROUP_HEAD_FILE, load_group_head
from pipeline.stages.fit_head import FitSettings, fit_head
from tests.fitting.test_pooling import planted

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("pooling", ["mean", "max", "embeddings"])
def test_a_loaded_head_answers_as_the_fit_did(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pooling: Any) -> None:
    cache = planted(30, 6)
    monkeypatch.setattr(sys.modules["pipeline.stages.fit_head"], "open_cache", lambda path: cache)
    settings = FitSettings(
        per="patient", pooling=pooling, Cs=(0.1,), folds=2, replicates=200, learning_curve=False, report=False
    )
    result = fit_head("c.h5", tmp_path / "run", settings)
    head = load_head(tmp_path / "run")
    grouping = Grouping.of(head, tmp_path / "run", "patient")
    assert (grouping.pooling.how, grouping.lines()) == (pooling, [])
    answers = GroupAnswers(grouping, cache.columns, "the cache")
    for start in range(0, len(cache), 37):
        X = cache.embeddings[start : start + 37]
        answers.add(cache.keys[start : start + 37].tolist(), X, [""] * len(X), head.model.predict_proba(X))
    file = io.StringIO(newline="")
    answers.write(file)
    found = {line["group"]: line for line in csv.DictReader(io.StringIO(file.getvalue()))}
    expected = result.groups_to_pandas()
    assert 0 < len(expected) < len(found) == 30
    for _, line in expected.iterrows():
        got = found[line["group"]]
        assert [float(got[f"p_{n}"]) for n in head.class_names] == pytest.approx(
            [float(line[f"p_{n}"]) for n in head.class_names], rel=1e-3, abs=1e-6
        )
    if pooling == "embeddings":
        assert load_group_head(tmp_path / "run" / "head.safetensors").width == 10
        (tmp_path / "run" / GROUP_HEAD_FILE).unlink()
        with pytest.raises(HeadError, match="found nothing"):
            Grouping.of(head, tmp_path / "run", "patient")
