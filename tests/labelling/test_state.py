from __future__ import annotations

import random
from typing import Any

import pytest

from pipeline.labelling.journal import LabelError
from pipeline.labelling.state import Labels, replay

CLASSES, SETS, NUMBERS = "classification", "multilabel", "regression"


def done(task: str, *entries: dict[str, Any]) -> Labels:
    return replay(task, entries)


def label(value: Any, *keys: str) -> dict[str, Any]:
    return {"do": "label", "keys": list(keys), "value": value}


def test_labels_of_the_last_action_count_and_classes_keep_their_order() -> None:
    labels = done(CLASSES, {"do": "class", "value": "dog"}, label("cat", "a", "b"), label("dog", "b"), label(None, "a"))
    assert labels.values == {"b": "dog"}
    assert labels.classes == ("dog", "cat")
    assert labels.actions == 4


def test_sets_grow_shrink_and_may_be_empty() -> None:
    add: dict[str, Any] = {"do": "add", "keys": ["a", "b"], "value": "x"}
    labels = done(SETS, add, {**add, "keys": ["a"], "value": "w"}, {**add, "do": "drop", "keys": ["b"]}, label([], "c"))
    assert labels.values == {"a": ("w", "x"), "b": (), "c": ()}
    assert done(SETS, label(["b", "a", "b"], "k")).values == {"k": ("a", "b")}


def test_numbers_are_numbers() -> None:
    assert done(NUMBERS, label(3, "a"), label(-0.5, "b")).values == {"a": 3.0, "b": -0.5}


def test_a_renamed_class_keeps_its_place_and_joins_one_that_exists() -> None:
    start = [label("kat", "a"), label("dog", "b"), label("cat", "c")]
    labels = done(CLASSES, *start, {"do": "rename", "value": "kat", "to": "cat"})
    assert labels.values == {"a": "cat", "b": "dog", "c": "cat"}
    assert labels.classes == ("cat", "dog")
    undone = done(CLASSES, *start, {"do": "rename", "value": "kat", "to": "cat"}, {"do": "undo"})
    assert undone.values == {"a": "kat", "b": "dog", "c": "cat"}
    assert undone.classes == ("kat", "dog", "cat")


@pytest.mark.parametrize("task", [CLASSES, SETS, NUMBERS])
def test_undo_and_redo_go_all_the_way_back_and_forth(task: str) -> None:
    rng = random.Random(3)
    labels, states = Labels(task), []
    keys = [f"k{n}" for n in range(8)]
    for _ in range(60):
        some = rng.sample(keys, 3)
        entries: list[dict[str, Any]] = [label(rng.random(), *some)]
        if task == CLASSES:
            entries = [label(rng.choice("abc"), *some), label(None, *some), {"do": "rename", "value": "a", "to": "d"}]
        elif task == SETS:
            entries = [{"do": do, "keys": some, "value": rng.choice("abc")} for do in ("add", "drop")]
        try:
            entry = labels.check(rng.choice(entries))
        except LabelError:
            continue
        states.append((dict(labels.values), labels.classes))
        labels.apply(entry)
    last = (dict(labels.values), labels.classes)
    for state in reversed(states):
        labels.apply(labels.check({"do": "undo"}))
        assert (labels.values, labels.classes) == state
    with pytest.raises(LabelError, match="nothing to undo"):
        labels.check({"do": "undo"})
    for _ in states:
        labels.apply(labels.check({"do": "redo"}))
    assert (labels.values, labels.classes) == last
    with pytest.raises(LabelError, match="nothing to redo"):
        labels.check({"do": "redo"})


def test_a_new_action_ends_what_can_be_repeated() -> None:
    labels = done(CLASSES, label("a", "k"), {"do": "undo"}, label("b", "k"))
    assert labels.redoable is None
    assert labels.values == {"k": "b"}


@pytest.mark.parametrize(
    ("task", "entry", "reason"),
    [
        (CLASSES, {"do": "explode"}, "one of the actions"),
        (CLASSES, {"do": ["label"]}, "one of the actions"),
        (CLASSES, label("cat"), "none: select"),
        (CLASSES, {"do": "label", "keys": "ab", "value": "cat"}, "none: select"),
        (CLASSES, {"do": "label", "keys": [3], "value": "cat"}, "expected a text"),
        (CLASSES, label(" ", "a"), "name of a class"),
        (CLASSES, label("a\nb", "a"), "one line"),
        (CLASSES, label("\ud800", "a"), "one line"),
        (CLASSES, label("x" * 201, "a"), "200 characters"),
        (CLASSES, label(["a"], "a"), "name of a class"),
        (CLASSES, label(None, "a"), "no.* label to remove|none of these"),
        (CLASSES, {"do": "add", "keys": ["a"], "value": "x"}, "--task multilabel"),
        (CLASSES, {"do": "rename", "value": "no", "to": "x"}, "no class"),
        (SETS, label("cat", "a"), "list of labels"),
        (SETS, label(["a|b"], "a"), "separates"),
        (SETS, {"do": "add", "keys": ["a"], "value": "a;b"}, "separates"),
        (NUMBERS, label(float("nan"), "a"), "finite"),
        (NUMBERS, label(True, "a"), "finite"),
        (NUMBERS, label("3", "a"), "finite"),
        (NUMBERS, {"do": "class", "value": "x"}, "no classes"),
    ],
)
def test_what_is_no_action_is_refused_by_name(task: str, entry: dict[str, Any], reason: str) -> None:
    with pytest.raises(LabelError, match=reason):
        Labels(task).check(entry)


def test_a_class_exists_once() -> None:
    labels = done(CLASSES, {"do": "class", "value": "cat"})
    with pytest.raises(LabelError, match="already"):
        labels.check({"do": "class", "value": "cat"})


def test_a_journal_that_was_edited_is_refused_with_its_line() -> None:
    with pytest.raises(LabelError, match="line 3 of the journal"):
        done(CLASSES, label("a", "k"), {"do": "redo"})
