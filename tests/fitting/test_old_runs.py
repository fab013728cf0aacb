"""Caches, heads and runs of version 0.1.0 load, and predict the same numbers."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

from pipeline.cache import open_cache
from pipeline.cache.verify import verify
from pipeline.fitting.compare import compare_runs
from pipeline.heads import load_head
from pipeline.heads.calibration import load_calibration

OLD = Path(__file__).parent.parent / "data" / "0.1.0"
RUNS = sorted(file.parent.name for file in OLD.glob("*/run.json"))
OF_SCIKIT_LEARN = {"estimator", "multilabel"}
"""Runs whose head.joblib holds an estimator of scikit-learn, which other versions of it need not load."""


def _skip_for_other_versions(name: str) -> None:
    fitted_with = json.loads((OLD / name / "run.json").read_text())["versions"]["scikit-learn"]
    if name in OF_SCIKIT_LEARN and fitted_with != version("scikit-learn"):
        pytest.skip(f"the pickle of a scikit-learn estimator is made for scikit-learn {fitted_with}")


def _expected(name: str) -> Any:
    return np.load(OLD / name / "expected.npz")


def test_every_kind_of_run_is_there() -> None:
    assert {"logistic", "linear", "ridge", "knn", "centroid", "estimator", "regression", "multilabel"} <= set(RUNS)


def test_the_cache_is_intact() -> None:
    assert verify(OLD / "cache.h5").complete
    assert len(open_cache(OLD / "cache.h5")) == 48


@pytest.mark.parametrize("name", RUNS)
def test_a_saved_head_predicts_as_before(name: str) -> None:
    if not (OLD / name / "head.safetensors").exists():
        _skip_for_other_versions(name)
    X = np.asarray(open_cache(OLD / "cache.h5").embeddings)
    head = load_head(OLD / name, trust=True)
    np.testing.assert_allclose(head.model.predict_proba(X), _expected(name)["model"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", RUNS)
def test_an_estimator_predicts_as_before(name: str) -> None:
    _skip_for_other_versions(name)
    X = np.asarray(open_cache(OLD / "cache.h5").embeddings)
    estimator = joblib.load(OLD / name / "head.joblib")
    names = ("predict_proba", "decision_function", "predict")
    method = next(method for method in names if hasattr(estimator, method))
    found = np.asarray(getattr(estimator, method)(X), dtype=np.float64)
    np.testing.assert_allclose(found, _expected(name)["estimator"], rtol=1e-5, atol=1e-6)


def test_the_runs_can_be_compared() -> None:
    first, second = compare_runs([OLD / "logistic", OLD / "estimator"])
    assert first.measure == second.measure == "accuracy"
    assert first.difference.value == 0


def test_an_old_run_keeps_nothing_for_later_doubts() -> None:
    assert all(load_calibration(OLD / name) is None for name in RUNS)
