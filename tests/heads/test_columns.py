"""Columns beside embeddings: how values become features, and that only training rows say how."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import HeadError
from pipeline.heads.columns import (
    CATEGORY,
    NUMBER,
    ColumnEncoder,
    EncodedColumns,
    FurtherColumns,
    kind_of,
    levels_of,
    numbers_of,
)

if TYPE_CHECKING:
    from pipeline.heads.columns import Kind

AGE = np.array([30.0, 50.0, np.nan, 40.0])
SITE = np.array(["b", "a", "b", ""])
KINDS: dict[str, Kind] = {"age": NUMBER, "site": CATEGORY}


def fitted() -> ColumnEncoder:
    return ColumnEncoder.fit({"age": AGE, "site": SITE}, KINDS)


def test_numbers_are_standardised_and_gaps_are_the_mean_with_a_mark() -> None:
    found = ColumnEncoder.fit({"age": AGE}, {"age": NUMBER}).encode({"age": AGE})
    known = np.array([30.0, 50.0, 40.0])
    expected = (AGE - known.mean()) / known.std()
    assert found[:, 0].tolist() == pytest.approx(np.nan_to_num(expected).tolist())
    assert found[:, 1].tolist() == [0, 0, 1, 0]


def test_categories_are_a_column_each_and_missing_is_a_level_where_training_rows_lack_one() -> None:
    found = fitted().encode({"age": AGE, "site": SITE})
    assert found[:, 2:].tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]  # a, b, missing


def test_what_no_training_row_has_is_all_zeros_and_is_counted() -> None:
    encoder = ColumnEncoder.fit({"age": AGE[:2], "site": SITE[:2]}, KINDS)
    new = {"age": np.array([np.nan, 40.0]), "site": np.array(["c", ""])}
    assert encoder.width == 3
    assert encoder.encode(new).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert encoder.unknown(new) == {"age": 1, "site": 2}
    assert FurtherColumns(encoder, new, "x.csv").lines() == [
        "column 'age': 1 images have a value, or a gap, that no training image has",
        "column 'site': 2 images have a value, or a gap, that no training image has",
    ]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "2.5", ""], NUMBER),
        (["1", "unknown", "-3e2"], NUMBER),
        (["1", "x"], CATEGORY),
        (["", "n/a"], CATEGORY),
        ([1, 2], NUMBER),
        ([0.5, np.nan], NUMBER),
        ([True, False], CATEGORY),
    ],
)
def test_the_kind_is_that_of_the_values(values: list[Any], kind: str) -> None:
    assert kind_of(np.array(values)) == kind


def test_a_category_is_named_by_its_own_value_alone() -> None:
    whole, mixed = levels_of(np.array([3.0, 1.0])), levels_of(np.array([3.0, 0.5]))
    assert whole[0] == mixed[0] == levels_of(np.array([3]))[0] == levels_of(np.array([" 3 "]))[0] == "3"


@pytest.mark.parametrize("values", [["1", "two"], ["1", "inf"], [1.0, np.inf]])
def test_what_is_no_number_is_named(values: list[Any]) -> None:
    with pytest.raises(HeadError, match=r"'dose': expected numbers, found '(two|inf)'"):
        numbers_of(np.array(values), "dose")


CELLS = st.one_of(st.none(), st.floats(-1e6, 1e6, width=32))


@given(
    numbers=st.lists(CELLS, min_size=4, max_size=30),
    seed=st.integers(0, 2**16),
    others=st.lists(CELLS, min_size=30, max_size=30),
    texts=st.lists(st.sampled_from(["", "a", "b", "é", "B"]), min_size=30, max_size=30),
)
def test_rows_held_out_do_not_change_how_others_are_encoded(
    numbers: list[float | None], seed: int, others: list[float | None], texts: list[str]
) -> None:
    count = len(numbers)
    rng = np.random.default_rng(seed)
    train = np.sort(rng.permutation(count)[: count // 2])
    held = np.setdiff1d(np.arange(count), train)
    first = {
        "x": np.array([np.nan if value is None else value for value in numbers]),
        "s": np.array(texts[:count], dtype="<U9"),
    }
    second = {name: values.copy() for name, values in first.items()}
    second["x"][held] = [np.nan if value is None else value for value in others[: len(held)]]
    second["s"][held] = "only here"
    every = np.arange(count)  # the whole encoder saw all rows; a fold's own saw its training rows alone
    kinds: dict[str, Kind] = {"x": NUMBER, "s": CATEGORY}
    one, two = (
        EncodedColumns(ColumnEncoder.fit({n: v[every] for n, v in values.items()}, kinds), values).refitted(train)
        for values in (first, second)
    )
    assert one.encoder == two.encoder
    assert np.array_equal(one[train], two[train])
    assert np.isfinite(one[every]).all()
    assert np.isfinite(two[every]).all()


@given(st.permutations(range(4)))
def test_a_part_of_the_rows_is_encoded_as_the_whole_is(order: list[int]) -> None:
    values, encoder = {"age": AGE, "site": SITE}, fitted()
    rows = np.array(order[:3])
    assert np.array_equal(EncodedColumns(encoder, values)[rows], encoder.encode(values)[rows])


def test_the_json_gives_the_same_encoder() -> None:
    encoder = fitted()
    again = ColumnEncoder.from_json(json.loads(json.dumps(encoder.to_json())))
    assert again == encoder


GOOD = {"kind": "number", "name": "age", "mean": 1.0, "scale": 2.0, "gaps": False}


@pytest.mark.parametrize(
    "hostile",
    [
        [],
        {},
        "age",
        [GOOD, GOOD],
        [GOOD | {"kind": "other"}],
        [GOOD | {"kind": ["number"]}],
        [GOOD | {"scale": 0}],
        [GOOD | {"scale": "1"}],
        [GOOD | {"mean": True}],
        [GOOD | {"gaps": 1}],
        [GOOD | {"name": 3}],
        [GOOD | {"more": 1}],
        [{"kind": "category", "name": "s", "levels": [], "gaps": False}],
        [{"kind": "category", "name": "s", "levels": ["a", "a"], "gaps": False}],
        [{"kind": "category", "name": "s", "levels": ["a", ""], "gaps": False}],
        [{"kind": "category", "name": "s", "levels": "ab", "gaps": False}],
    ],
)
def test_json_that_is_no_encoder_is_refused(hostile: Any) -> None:
    with pytest.raises(HeadError):
        ColumnEncoder.from_json(hostile)


def test_a_missing_column_is_named_with_those_near_it() -> None:
    with pytest.raises(HeadError, match=r"new\.csv: expected the column 'site'.*did you mean sites\?"):
        FurtherColumns(fitted(), {"age": AGE, "sites": SITE}, "new.csv")


def test_without_an_encoder_embeddings_stay_as_they_are() -> None:
    embeddings = np.ones((2, 3), np.float32)
    assert FurtherColumns(None, {}, "x").beside(embeddings, [0, 1]) is embeddings
