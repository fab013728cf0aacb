from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.errors import HeadError
from pipeline.fitting import target as module
from pipeline.fitting.settings import FitSettings
from tests.heads.standin import stand_in

if TYPE_CHECKING:
    from pipeline.fitting.target import Target

read_target: Any = module.read_target
"""Takes a stand-in for a cache as well."""


def read(values: Any, *, said: list[str] | None = None, **settings: Any) -> Target:
    cache = stand_in(len(values), columns={"c": np.asarray(values)})
    found: Target = read_target(cache, FitSettings(target="c", **settings), (said if said is not None else []).append)
    return found


def test_numbers_are_classes_unless_they_can_be_none() -> None:
    said: list[str] = []
    assert read(np.arange(300) % 7, said=said).task == "classification"
    # Whole numbers with a gap come as floats; years and ratings stay classes.
    assert read([float(n % 30) if n % 9 else np.nan for n in range(300)], said=said).task == "classification"
    assert read(np.arange(300) % 5 / 2, said=said).task == "classification"
    assert read(np.arange(300) / 7, said=said).task == "regression"
    assert [line.rpartition("taken as classes")[0] != "" for line in said] == [True, True, True, False]
    assert all("--task" in line for line in said)
    assert read(["1.5", "2.5"] * 50).task == "classification"


def test_a_class_column_keeps_its_names_and_gaps() -> None:
    target = read(["b", "", "a", "b"])
    assert target.names == ("", "a", "b")
    assert target.known.tolist() == [True, False, True, True]
    assert [target.names[k] for k in target.y[target.known]] == ["b", "a", "b"]


@pytest.mark.parametrize("word", ["NA", "n/a", "NULL", "None", " ", "?"])
def test_a_word_for_missing_among_numbers_is_no_class(word: str) -> None:
    said: list[str] = []
    target = read(["1", "2", "3", word] * 5, said=said)
    assert [target.names[k] for k in np.unique(target.y[target.known])] == ["1", "2", "3"]
    assert target.known.sum() == 15
    assert "5 rows that say" in said[0]


def test_the_same_word_among_names_is_a_name_and_that_is_said() -> None:
    said: list[str] = []
    target = read(["NA", "ZA", "AO", "NA"], said=said)
    assert target.known.all()
    assert "NA" in target.names
    assert said == ["'c': 2 rows say 'NA', taken as a name: leave such cells empty where there is none"]


def test_a_cell_of_blanks_is_no_class() -> None:
    assert read(["cat", " ", "dog", "\t"]).known.tolist() == [True, False, True, False]


@pytest.mark.parametrize("kind", ["table", "folder"])
def test_texts_that_are_numbers_are_learned_as_numbers_alike(kind: str) -> None:
    texts = [f"{number / 7:.3f}" for number in range(40)]
    said: list[str] = []
    assert read([*texts, "n/a"], said=said).task == "regression"
    assert "--task says otherwise" in said[0]
    cache = stand_in(40)
    cache.label_names, cache.labels, cache.source = tuple(texts), np.arange(40), {"kind": kind}
    task = read_target(cache, FitSettings(), said.append).task
    assert task == ("regression" if kind == "table" else "classification")  # folders are classes, whatever their names


def test_what_only_python_reads_as_a_number_is_none() -> None:
    assert read(["1_1", "1_2"] * 20).task == "classification"
    with pytest.raises(HeadError, match="found '1_1'"):
        read(["1_1", "1_2"] * 20, task="regression")


def test_whole_numbers_keep_their_names_beside_an_empty_cell() -> None:
    for values in ([1.0, 2.0, 3.0, 1.0], [1.0, 2.0, np.nan, 3.0]):
        target = read(values)
        assert [target.names[k] for k in np.unique(target.y[target.known])] == ["1", "2", "3"]
    assert read([1.5, 2.0, 1.5]).names == ("1.5", "2.0")


def test_numbers_come_from_numbers_and_from_texts() -> None:
    whole = read([3, 1, 2, 3], task="regression")
    assert (whole.y.tolist(), whole.names) == ([3, 1, 2, 3], ("c",))
    texts = read(["1.5", "", "-2e3", "1.5"], task="regression")
    assert texts.known.tolist() == [True, False, True, True]
    assert texts.y[texts.known].tolist() == [1.5, -2000, 1.5]
    gaps = read([0.5, np.nan, np.inf, 1], task="regression")
    assert gaps.known.tolist() == [True, False, False, True]
    with pytest.raises(HeadError, match=r"expected numbers in 'c' .* found 'tall'"):
        read(["1.5", "tall"], task="regression")


def test_labels_can_be_numbers_or_sets_too() -> None:
    cache = stand_in(4)
    cache.label_names, cache.labels = ("1", "2.5", "x|y"), np.asarray([0, 1, -1, 1])
    cache.label_names = ("1", "2.5")
    target = read_target(cache, FitSettings(task="regression"), print)
    assert (target.y[target.known].tolist(), target.known.tolist()) == ([1, 2.5, 2.5], [True, True, False, True])
    cache.label_names = ("cat|dog", "dog")
    target = read_target(cache, FitSettings(task="multilabel", target="label"), print)
    assert target.names == ("cat", "dog")
    assert target.y[target.known].tolist() == [[True, True], [False, True], [False, True]]
    cache.label_names = ()
    cache.labels = np.full(4, -1)
    for task in ("regression", "multilabel", "classification"):
        try:
            assert not read_target(cache, FitSettings(task=task), print).known.any()
        except HeadError as error:
            assert task == "multilabel" and "at least 2 labels" in str(error)  # noqa: PT017, PT018


def test_label_sets_are_split_and_an_empty_set_is_not_a_gap() -> None:
    target = read(["cat | dog", "dog", "", "|", "cat|cat"], task="multilabel")
    assert target.names == ("cat", "dog")
    assert target.known.tolist() == [True, True, False, True, True]
    assert target.y[target.known].tolist() == [[True, True], [False, True], [False, False], [True, False]]
    assert read(["cat;dog", "dog"], task="multilabel").names == ("cat", "dog")
    assert read(["cat;x|dog", "dog"], task="multilabel").names == ("cat;x", "dog")
    said: list[str] = []
    assert read(["cat|dog", "dog"], said=said).task == "classification"
    assert "--task multilabel" in said[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [(["cat", "cat"], "at least 2 labels"), ([1, 2], "expected label sets such as 'cat|dog' in 'c', found int64")],
)
def test_what_is_no_label_set_is_refused(values: Any, message: str) -> None:
    with pytest.raises(HeadError) as caught:
        read(values, task="multilabel")
    assert message in str(caught.value)
