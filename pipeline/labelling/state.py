"""The labels of a session: what the actions of its journal add up to, with undo and redo.

An action is what a person did: label images, add a label to their sets, name a class, rename it. Actions are JSON
objects, as the journal holds them:

==========  ====================================  ==========================================================
``do``      other fields                          effect
==========  ====================================  ==========================================================
label       ``keys``, ``value``                   the label of these images; None removes it
labels      ``values`` (key to value)             a label for each image, such as those of a table
add, drop   ``keys``, ``value`` (a class)         add to the images' label sets, or remove from them
class       ``value``                             a new class
rename      ``value``, ``to``                     another name for a class; a name that exists joins the two
undo, redo                                        take back the last action; repeat what was taken back last
==========  ====================================  ==========================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.core.names import one_line
from pipeline.core.text import OTHER_SET_SEPARATOR, SET_SEPARATOR
from pipeline.labelling.journal import LabelError, texts_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pipeline.labelling.journal import Entry

Value = str | float | tuple[str, ...]
"""A class, a number, or a label set in the order of the classes."""

CLASSES, NUMBERS, SETS = "classification", "regression", "multilabel"
TASKS = (CLASSES, SETS, NUMBERS)
LONGEST_NAME = 200
MOST_CLASSES = 1000
ACTIONS = ("label", "labels", "add", "drop", "class", "rename")


@dataclass(frozen=True, slots=True)
class _Step:
    """An action that was done, and what stood there before: the labels of the images it changed, and the classes."""

    entry: Entry
    before: dict[str, Value | None]
    classes: tuple[str, ...]


class Labels:
    """The labels of images by key, and the classes in the order in which they were named.

    Parameters
    ----------
    task : str
        ``"classification"``, ``"multilabel"`` or ``"regression"``.

    Attributes
    ----------
    values : dict of str to Value
        The label of every image that has one.
    classes : tuple of str
    actions : int
        How many entries were applied, undo and redo included.
    changes : int
        How many actions are in effect.
    """

    def __init__(self, task: str) -> None:
        self.task = task
        self.values: dict[str, Value] = {}
        self.classes: tuple[str, ...] = ()
        self.actions = 0
        self._done: list[_Step] = []
        self._undone: list[Entry] = []

    @property
    def changes(self) -> int:
        """How many actions are in effect."""
        return len(self._done)

    @property
    def undoable(self) -> Entry | None:
        """The action that ``undo`` would take back."""
        return self._done[-1].entry if self._done else None

    @property
    def redoable(self) -> Entry | None:
        """The action that ``redo`` would repeat."""
        return self._undone[-1] if self._undone else None

    def check(self, entry: Mapping[str, Any]) -> Entry:
        """Return an action in the form in which it is kept, without doing it.

        Raises
        ------
        LabelError
            It is none, or changes nothing.
        """
        do = entry.get("do")
        if do == "undo" or do == "redo":
            if (self.undoable if do == "undo" else self.redoable) is None:
                raise LabelError(f"there is nothing to {do}")
            return {"do": do}
        if do not in ACTIONS:
            raise LabelError(f"expected one of the actions {', '.join(ACTIONS)}, found {do!r}: reload the page")
        checked = getattr(self, f"_check_{do}")(entry)
        return {"do": do, **checked}

    def apply(self, entry: Entry) -> list[str]:
        """Do an action that was checked; return the keys whose label it may have changed."""
        self.actions += 1
        if entry["do"] == "undo":
            step = self._done.pop()
            self._undone.append(step.entry)
            self.classes = step.classes
            self._put(step.before)
            return list(step.before)
        if entry["do"] == "redo":
            return self._do(self._undone.pop())
        self._undone.clear()
        return self._do(entry)

    def _do(self, entry: Entry) -> list[str]:
        changed = self._changes(entry)
        before = {key: self.values.get(key) for key in changed}
        self._done.append(_Step(entry, before, self.classes))
        self.classes = self._classes_after(entry)
        self._put(changed)
        return list(changed)

    def _put(self, changed: Mapping[str, Value | None]) -> None:
        for key, value in changed.items():
            if value is None:
                self.values.pop(key, None)
            else:
                self.values[key] = value

    def _changes(self, entry: Entry) -> dict[str, Value | None]:
        """Return the labels after an action of the images that it concerns."""
        do, value = entry["do"], entry.get("value")
        if do == "label":
            new = None if value is None else self._value(value)
            return dict.fromkeys(entry["keys"], new)
        if do == "labels":
            return {key: self._value(given) for key, given in entry["values"].items()}
        if do in ("add", "drop"):
            return {key: self._with(self.values.get(key), str(value), has=do == "add") for key in entry["keys"]}
        if do == "rename":
            return {key: new for key, old in self.values.items() if (new := _renamed(old, value, entry["to"])) != old}
        return {}

    def _with(self, value: Value | None, name: str, *, has: bool) -> Value:
        assert value is None or isinstance(value, tuple)
        names = {*(value or ()), name} if has else {*(value or ())} - {name}
        return tuple(sorted(names))

    def _classes_after(self, entry: Entry) -> tuple[str, ...]:
        do = entry["do"]
        if do == "rename":
            return tuple(dict.fromkeys(entry["to"] if name == entry["value"] else name for name in self.classes))
        if self.task == NUMBERS:
            return ()
        if do == "labels":
            given = [self._value(value) for value in entry["values"].values()]
        else:
            given = [] if entry.get("value") is None else [self._value(entry["value"])]
        found = (name for value in given for name in (value if isinstance(value, tuple) else (str(value),)))
        return tuple(dict.fromkeys((*self.classes, *found)))

    def _value(self, value: Any) -> Value:
        if isinstance(value, list):
            return tuple(sorted(value))
        return float(value) if self.task == NUMBERS else value

    # --- checks -----------------------------------------------------------------------------------------------

    def _check_label(self, entry: Mapping[str, Any]) -> Entry:
        keys = _keys(entry)
        value = entry.get("value")
        if value is None:
            if not any(key in self.values for key in keys):
                raise LabelError("none of these images has a label to remove")
            return {"keys": keys, "value": None}
        return {"keys": keys, "value": self._checked_value(value)}

    def _check_labels(self, entry: Mapping[str, Any]) -> Entry:
        values = entry.get("values")
        if not isinstance(values, dict) or not values:
            raise LabelError("expected labels by key, found none")
        return {"values": {key: self._checked_value(value) for key, value in values.items()}}

    def _check_add(self, entry: Mapping[str, Any]) -> Entry:
        if self.task != SETS:
            raise LabelError("expected label sets for this action: start pipeline label with --task multilabel")
        return {"keys": _keys(entry), "value": self._name(entry.get("value"))}

    _check_drop = _check_add

    def _check_class(self, entry: Mapping[str, Any]) -> Entry:
        name = self._name(entry.get("value"))
        if name in self.classes:
            raise LabelError(f"there is a class {name!r} already: choose another name")
        return {"value": name}

    def _check_rename(self, entry: Mapping[str, Any]) -> Entry:
        if entry.get("value") not in self.classes:
            raise LabelError(f"there is no class {entry.get('value')!r}: reload the page")
        return {"value": entry["value"], "to": self._name(entry.get("to"))}

    def _checked_value(self, value: Any) -> Any:
        if self.task == NUMBERS:
            return _number(value)
        if self.task == SETS:
            if not isinstance(value, (list, tuple)):
                raise LabelError(f"expected a list of labels, found {type(value).__name__}: reload the page")
            return sorted({self._name(name) for name in value})
        return self._name(value)

    def _name(self, name: Any) -> str:
        """Return the name of a class, if it is one that tables keep as it is.

        Raises
        ------
        LabelError
            Says what is wrong with it.
        """
        if self.task == NUMBERS:
            raise LabelError("expected numbers, which have no classes: start pipeline label with --task classification")
        checked = check_name(name, in_sets=self.task == SETS)
        if checked not in self.classes and len(self.classes) >= MOST_CLASSES:
            raise LabelError(f"expected {MOST_CLASSES} classes at most: use one that exists")
        return checked


def check_name(name: Any, *, in_sets: bool) -> str:
    """Return the name of a class, if it is one that tables keep as it is.

    Parameters
    ----------
    name : Any
        What was given as a name.
    in_sets : bool
        Whether names stand beside each other in label sets.

    Raises
    ------
    LabelError
        Says what is wrong with it.
    """
    if not isinstance(name, str) or not name.strip():
        raise LabelError("expected the name of a class, found none: write a name")
    if name != name.strip() or one_line(name) != name or not name.isprintable():
        raise LabelError(f"expected a name without spaces around it and of one line, found {name!r}: write another")
    if len(name) > LONGEST_NAME:
        raise LabelError(
            f"expected a name of {LONGEST_NAME} characters at most, found {len(name)}: write a shorter one"
        )
    found = next((sign for sign in (SET_SEPARATOR, OTHER_SET_SEPARATOR) if sign in name), None)
    if in_sets and found:
        raise LabelError(f"expected a name without {found!r}, which separates the labels of a set: write another")
    return name


def _keys(entry: Mapping[str, Any]) -> list[str]:
    keys = entry.get("keys")
    if not isinstance(keys, list) or not keys:
        raise LabelError("expected images to label, found none: select some")
    return texts_of(keys)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise LabelError(f"expected a finite number, found {value!r}: write a number")
    return float(value)


def _renamed(value: Value, name: Any, to: str) -> Value:
    if isinstance(value, tuple):
        return tuple(sorted({to if one == name else one for one in value}))
    return to if value == name else value


def replay(task: str, entries: Iterable[Entry]) -> Labels:
    """Return what the entries of a journal add up to; entries of other kinds are passed over.

    Raises
    ------
    LabelError
        An action cannot follow those before it: the journal was edited.
    """
    labels = Labels(task)
    for number, entry in enumerate(entries, 2):
        if entry.get("do") not in (*ACTIONS, "undo", "redo"):
            continue
        try:
            labels.apply(labels.check(entry))
        except LabelError as error:
            raise LabelError(f"line {number} of the journal cannot follow those before it ({error})") from None
    return labels
