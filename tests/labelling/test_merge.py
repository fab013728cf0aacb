from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from pipeline.cache import open_cache
from pipeline.labelling.journal import LabelError
from pipeline.labelling.merge import agreement, give, labels_of_cache, merge_labels
from pipeline.labelling.session import open_session
from pipeline.labelling.table import read_labels
from tests.labelling.sample import make_digits, targets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.labelling.session import Session

COUNT = 40


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    path = make_digits(tmp_path / "data", COUNT, labelled=True)
    with open_session(open_cache(path), tmp_path / "labels.csv") as found:
        yield found


def test_kappa_is_scikit_learns() -> None:
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(1)
    own = rng.choice(["a", "b", "c"], 200).tolist()
    other = [value if rng.random() < 0.7 else rng.choice(["a", "b", "d"]) for value in own]
    kappa, _ = agreement("classification", own, other)
    assert kappa == pytest.approx(cohen_kappa_score(own, other))
    has = [("x",) if rng.random() < 0.5 else () for _ in range(50)]
    theirs = [("x",) if rng.random() < 0.5 else () for _ in range(50)]
    kappa, _ = agreement("multilabel", has, theirs)
    assert kappa == pytest.approx(cohen_kappa_score([bool(v) for v in has], [bool(v) for v in theirs]))
    assert agreement("regression", [1.0, 2.0], [1.5, 1.0])[1] == 0.75
    assert np.isnan(agreement("classification", ["a", "a"], ["a", "a"])[0])


def test_labels_of_another_table_are_added_and_own_ones_stay(session: Session, tmp_path: Path) -> None:
    give(session, {"0001.png": "one", "0002.png": "two", "0003.png": "three"})
    other = tmp_path / "other.csv"
    other.write_text("key,label\n0002.png,two\n0003.png,five\n0004.png,four\n0005.png,\nelsewhere.png,six\n")
    merged = merge_labels(session, str(other))
    assert (merged.added, merged.both, merged.unknown) == (1, 2, 1)
    assert merged.conflicts == [("0003.png", "three", "five")]
    assert session.labels.values == {"0001.png": "one", "0002.png": "two", "0003.png": "three", "0004.png": "four"}
    text = "\n".join(merged.lines())
    assert "1 labels added" in text
    assert "kappa" in text
    session.act({"do": "undo"}, seen=session.labels.actions)
    assert len(session.labels.values) == 3


def test_a_line_without_a_key_is_of_no_image(tmp_path: Path) -> None:
    table = pd.DataFrame({"key": [None, "a", None], "label": ["x", "y", "z"]})
    table.to_parquet(tmp_path / "t.parquet")
    assert read_labels(str(tmp_path / "t.parquet"), "classification") == {"a": "y"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("key,class\n0001.png,a\n", "no 'label'"),
        ("path,label\n0001.png,a\n", "no 'key'"),
        ("key,label\n0001.png,a\n0001.png,b\n", "more than once"),
        ("key,label\nother.png,a\n", "keys of the cache"),
        ('key,label\n0001.png, a\n0002.png,"a\nb"\n', "one line"),
    ],
)
def test_a_table_that_cannot_be_merged_is_refused_whole(
    session: Session, tmp_path: Path, text: str, reason: str
) -> None:
    (tmp_path / "other.csv").write_text(text)
    with pytest.raises(LabelError, match=reason):
        merge_labels(session, str(tmp_path / "other.csv"))
    assert session.labels.values == {}


def test_labels_of_the_cache_are_kept_on_demand(session: Session) -> None:
    give(session, {"0000.png": "mine"})
    kept = labels_of_cache(session)
    assert len(kept) == COUNT - 1
    give(session, kept)
    assert [session.labels.values[key] for key in session.keys] == ["mine", *targets(COUNT)[1:]]
    assert labels_of_cache(session) == {}
