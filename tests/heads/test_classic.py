from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestCentroid

from pipeline.errors import HeadError
from pipeline.heads import CentroidHead
from pipeline.heads.fit import FitOptions
from pipeline.heads.registry import HEADS, STREAMED, find_head
from pipeline.heads.sklearn import scores_of, scoring_method
from tests.heads.standin import blobs


def test_the_centroid_is_scikit_learns() -> None:
    X, y = blobs()
    new, _ = blobs(seed=5)
    np.testing.assert_array_equal(CentroidHead().fit(X, y).predict(new), NearestCentroid().fit(X, y).predict(new))


@pytest.mark.parametrize("name", sorted(set(HEADS) - STREAMED - {"zero-shot"}))  # which files of their own test
@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_saved_arrays_predict_what_the_estimator_does(name: str, n_classes: int) -> None:
    X, y = blobs(n_classes=n_classes)
    new, _ = blobs(n_classes=n_classes, seed=7)
    fitted = find_head(name)(X, y, None, FitOptions(Cs=(0.1,), folds=3))
    assert fitted.model is not None
    np.testing.assert_array_equal(fitted.model.predict_proba(new).argmax(1), fitted.estimator.predict(new))
    if name != "knn":
        scores = fitted.model.scores(new)
        theirs = scores_of(
            fitted.estimator, new, "softmax", n_classes, scoring_method(fitted.estimator, X, "softmax", n_classes)
        )
        np.testing.assert_allclose(
            fitted.model.predict_proba(new) if name == "mlp" else np.diff(scores, axis=1),
            np.exp(theirs) if name == "mlp" else np.diff(theirs, axis=1),
            atol=1e-4,
        )
        assert fitted.oof_scores is not None
        assert fitted.oof_scores.shape == (len(X), n_classes)


def test_an_unknown_head_lists_near_names() -> None:
    with pytest.raises(HeadError, match="did you mean logistic"):
        find_head("logistics")
