from __future__ import annotations

import pytest
from sklearn.datasets import load_iris

from pipeline.heads import LogisticSweep
from pipeline.report.content import varied


def test_the_values_of_c_are_found_whatever_the_fits_report() -> None:
    head = LogisticSweep(Cs=(0.1, 1.0)).fit(*load_iris(return_X_y=True))
    chosen = {"C": head.C_, "converged": True, "gap_estimate": head.gap_estimate_, "folds": 5}
    found = varied({"chosen": chosen, "sweep": head.sweep_})
    assert found is not None
    assert (found[0], [entry["C"] for entry in found[1]]) == ("C", [0.1, 1.0])


@pytest.mark.parametrize("k", [3, 5])
def test_entries_of_other_settings_are_left_out(k: int) -> None:
    sweep = [{"n_neighbors": n, "metric": metric} for n in (1, 3, 5) for metric in ("cosine", "euclidean")]
    found = varied({"chosen": {"n_neighbors": k, "metric": "cosine"}, "sweep": sweep})
    assert found is not None
    assert [entry["n_neighbors"] for entry in found[1]] == [1, 3, 5]
    assert {entry["metric"] for entry in found[1]} == {"cosine"}
