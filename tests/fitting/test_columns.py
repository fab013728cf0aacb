"""Which columns of a cache may join the embeddings, and as what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.core.callbacks import ignore
from pipeline.errors import HeadError
from pipeline.fitting.columns import ColumnBlocks, beside_embeddings, read_columns
from pipeline.fitting.rows import Rows
from pipeline.fitting.settings import FitSettings
from pipeline.heads.blocks import Blocks
from tests.heads.standin import StandIn, blobs

N = 60


def cache(**columns: Any) -> StandIn:
    X, y = blobs(N, 4, 3)
    return StandIn(X, y, ("ant", "bee", "cat"), {name: np.asarray(values) for name, values in columns.items()})


def rows_of(of: StandIn, **facts: Any) -> Rows:
    split = np.where(np.arange(N) % 4 == 3, "test", "train")
    return Rows(np.arange(N), of.labels, of.label_names, None, split, "hold-out", **facts)


def read(of: StandIn, *features: str, note: Any = ignore, **settings: Any) -> Any:
    return read_columns(of, rows_of(of), FitSettings(features=features, **settings), note)  # type: ignore[arg-type]


AGES = np.linspace(20, 80, N)
SITES = np.resize(["north", "south", "east"], N)


def test_numbers_and_categories_are_told_apart_and_said() -> None:
    said: list[str] = []
    texts = [f"{age:.2f}" if i % 5 else "n/a" for i, age in enumerate(AGES)]
    found = read(cache(age=texts, site=SITES), "age", "site", note=said.append)
    assert found.shape == (N, 2 + 3)
    assert said == ["--features: age as number, some missing; site as category, 3 levels"]


def test_a_kind_can_be_named() -> None:
    of = cache(site=np.resize([1, 2, 5], N), **{"a:category": AGES})
    assert read(of, "site").shape == (N, 1)
    assert read(of, "site:category").shape == (N, 3)
    assert read(of, "a:category").shape == (N, 1)  # a column's own name comes first
    with pytest.raises(HeadError, match="number or category behind the colon, found 'text'"):
        read(of, "site:text")


def test_the_encoder_has_seen_training_rows_alone() -> None:
    of = cache(age=AGES, site=SITES)
    test = rows_of(of).of("test")
    before = read(of, "age", "site").encoder
    of.columns["age"][test] = 1e6
    of.columns["site"] = of.columns["site"].astype("<U9")
    of.columns["site"][test] = "elsewhere"
    assert read(of, "age", "site").encoder == before


@pytest.mark.parametrize(
    ("columns", "features", "message"),
    [
        ({"age": AGES}, ("ages",), "ages: expected a column of the cache, .* did you mean age"),
        ({}, ("age",), "give a table with --labels"),
        ({"age": AGES}, ("label",), "expected a column, found the labels"),
        ({"age": AGES}, ("age", "age:number"), "each column once, found 'age' twice"),
        ({"split": SITES}, ("split",), "split: expected another column than the split"),
        ({"group": SITES}, ("group",), "group: expected another column than the group"),
        ({"x": np.ones(N)}, ("x",), r"x: expected values that differ, found 1\.0 in all 45 training rows"),
        ({"x": [""] * N}, ("x",), "found no value in all 45"),
        ({"x": [f"id{i}" for i in range(N)]}, ("x",), "found 45 values of a single row in 45 training rows"),
        ({"x": np.resize(["ant", "bee", "cat"], N)}, ("x",), "x: its values are those of 'label'"),
        ({"x": ["1", "a"] * 30}, ("x:number",), "x: .*expected numbers, found 'a'"),
    ],
)
def test_what_no_feature_can_be_is_refused_by_name(columns: Any, features: tuple[str, ...], message: str) -> None:
    with pytest.raises(HeadError, match=message) as caught:
        read(cache(**columns), *features)
    assert "\n" not in str(caught.value)


def test_the_column_of_the_answers_is_refused() -> None:
    for settings in ({"per": "site"}, {"groups": "site"}):
        with pytest.raises(HeadError, match=r"--features site: expected another column than (what --per|the group)"):
            read(cache(site=SITES), "site", **settings)


def test_rows_that_are_not_used_may_hold_anything() -> None:
    of = cache(age=[*(f"{age:.1f}" for age in AGES[:-1]), "broken"])
    rows = rows_of(of).kept(np.arange(N) < N - 1)
    found = read_columns(of, rows, FitSettings(features=("age",)), ignore)  # type: ignore[arg-type]
    assert found is not None
    assert found.shape == (N, 1)
    assert np.isfinite(found[np.arange(N)]).all()


def test_both_blocks_vary_by_one_in_all() -> None:
    of = cache(age=AGES, site=SITES)
    train = rows_of(of).of("train")
    both = beside_embeddings(of.embeddings, read(of, "age", "site"), train)
    X = both[train].astype(np.float64)
    assert X[:, :4].var(axis=0).sum() == pytest.approx(1, rel=1e-4)
    assert X[:, 4:].var(axis=0).sum() == pytest.approx(1, rel=1e-4)
    assert np.allclose(X[:, :4] * both.scale[:4], of.embeddings[train], rtol=1e-5)


def test_a_weight_multiplies_the_columns_alone_also_after_a_refit() -> None:
    of = cache(site=SITES)
    both = beside_embeddings(of.embeddings, read(of, "site"), np.arange(N))
    rows = np.arange(0, N, 2)
    for whole, light in ((both, both.weighted(0.25)), (both.refitted(rows), both.weighted(0.25).refitted(rows))):
        X, Y = whole[rows], light[rows]
        assert np.array_equal(X[:, :4], Y[:, :4])
        assert np.allclose(X[:, 4:] * 0.25, Y[:, 4:])
        assert np.allclose(X * whole.scale, Y * light.scale, rtol=1e-5)


def test_layers_keep_their_scales_beside_columns() -> None:
    of = cache(site=SITES)
    layers = Blocks([of.embeddings, of.embeddings], [2.0, 4.0])
    both = beside_embeddings(layers, read(of, "site"), np.arange(N))
    assert isinstance(both, ColumnBlocks)
    assert both.scale[:8].tolist() == [2.0] * 4 + [4.0] * 4
