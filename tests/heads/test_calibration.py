from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from pipeline.errors import HeadError
from pipeline.heads.calibration import (
    CALIBRATION_FILE,
    Calibration,
    ConformalScores,
    TrainingRows,
    hash_of_keys,
    load_calibration,
    save_calibration,
)
from pipeline.heads.novelty import fit_novelty

if TYPE_CHECKING:
    from pathlib import Path


def calibration() -> Calibration:
    rng = np.random.default_rng(0)
    training = TrainingRows("c.h5", "f", "k", np.arange(40), rng.integers(0, 3, 40))
    novelty = fit_novelty(rng.normal(size=(40, 6)).astype(np.float32), rng.dirichlet(np.ones(3), 40))
    scores = ConformalScores(rng.random(40), training.labels, np.arange(40), "out-of-fold")
    return Calibration(training, novelty, scores)


def damaged(file: Path, facts: dict[str, Any] | None = None, **arrays: Any) -> None:
    """Change a file's metadata and arrays; an array that is None is left out."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    found = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["calibration"]) | (facts or {})
    kept = {name: value for name, value in (load(data) | arrays).items() if value is not None}
    file.write_bytes(save(kept, metadata={"calibration": json.dumps(found)}))


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    found = calibration()
    save_calibration(tmp_path / CALIBRATION_FILE, found)
    for run in (tmp_path, tmp_path / "head.safetensors"):
        again = load_calibration(run)
        assert again is not None
        assert again.training.rows.tolist() == list(range(40))
        assert (again.training.cache, again.training.fingerprint, again.training.keys) == ("c.h5", "f", "k")
        assert again.conformal is not None
        assert found.conformal is not None
        assert again.conformal.scores.tolist() == found.conformal.scores.tolist()
        assert again.novelty is not None
        assert again.novelty.neighbour == 4


def test_each_part_may_be_missing(tmp_path: Path) -> None:
    assert load_calibration(tmp_path) is None
    whole = calibration()
    for part in (replace(whole, novelty=None), replace(whole, conformal=None)):
        save_calibration(tmp_path / CALIBRATION_FILE, part)
        again = load_calibration(tmp_path)
        assert again is not None
        assert (again.novelty is None, again.conformal is None) == (part.novelty is None, part.conformal is None)


@pytest.mark.parametrize(
    ("facts", "arrays", "message"),
    [
        ({"format": "other"}, {}, "expected embedding-pipeline calibration"),
        ({"format_version": 2}, {}, "of version 2"),
        ({}, {"scores": None}, "other arrays"),
        ({}, {"further": np.zeros(2)}, "other arrays"),
        ({}, {"scores": np.full(40, np.nan)}, "not finite"),
        ({}, {"scores": np.zeros(39)}, "label and a group for each score"),
        ({}, {"train_labels": np.zeros(39)}, "as many labels"),
        ({}, {"train_rows": np.full(40, -1)}, "as many labels"),
        ({}, {"novelty_neighbour": np.array([999])}, "novelty score"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, facts: Any, arrays: Any, message: str) -> None:
    save_calibration(tmp_path / CALIBRATION_FILE, calibration())
    damaged(tmp_path / CALIBRATION_FILE, facts, **arrays)
    with pytest.raises(HeadError, match=message) as caught:
        load_calibration(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_cut_short_is_one_line(tmp_path: Path) -> None:
    save_calibration(tmp_path / CALIBRATION_FILE, calibration())
    data = (tmp_path / CALIBRATION_FILE).read_bytes()
    for end in (0, 4, 100, len(data) - 9):
        (tmp_path / CALIBRATION_FILE).write_bytes(data[:end])
        with pytest.raises(HeadError, match="cannot load"):
            load_calibration(tmp_path)


def test_a_hash_of_keys_knows_their_order_and_where_each_ends() -> None:
    keys = [np.array(found) for found in (["a", "bc"], ["ab", "c"], ["bc", "a"], ["\udcff", "a"])]
    assert len({hash_of_keys(each) for each in keys}) == 4


def test_few_rows_of_a_class_are_named() -> None:
    scores = ConformalScores(np.zeros(60), np.repeat([0, 1, 2], [50, 7, 3]), np.arange(60), "out-of-fold")
    (first, second) = scores.warnings(0.9, ("ant", "bee", "cat"), by_class=True)
    assert first.startswith("2 of 3 classes have fewer than the 9 calibration rows")
    assert first.endswith("bee, cat")
    assert "50" in second
    assert scores.warnings(0.9, ("ant", "bee", "cat"), by_class=False)
