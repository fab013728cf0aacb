"""Which rows of a cache take part, on which side of the split, and which belong together.

Axes: N rows used, D features, K classes, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.items import Status, not_finite_error
from pipeline.core.names import name_form
from pipeline.core.text import counted
from pipeline.errors import HeadError
from pipeline.evaluation import splits
from pipeline.evaluation.near_duplicates import duplicate_groups, groups_of
from pipeline.evaluation.tasks import TASKS
from pipeline.fitting.groups import check_groups, read_groups

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.evaluation.tasks import TaskName
    from pipeline.fitting.settings import FitSettings
    from pipeline.fitting.target import Target

    Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """The rows of a cache that take part: their numbers in the cache, targets, groups and split.

    Attributes
    ----------
    index : ndarray of shape (N,)
        Rows of the cache.
    y : ndarray
        Classes int64 (N,) below K, numbers float64 (N,), or label sets bool (N, L).
    class_names : tuple of str
        K classes, L labels, or the name of the numbers.
    groups : ndarray of shape (N,) or None
        What must stay on one side.
    split : ndarray of shape (N,), str
        ``"train"``, ``"val"`` or ``"test"``.
    split_kind : str
        ``"column"`` or ``"hold-out"``.
    task : str
        What kind of target.
    target : str
        Its name.
    per : ndarray of shape (N,), str, or None
        What gets one answer; each lies in one group.
    per_name : str
        Its column.
    """

    index: Ints
    y: NDArray[Any]
    class_names: tuple[str, ...]
    groups: NDArray[Any] | None
    split: NDArray[np.str_]
    split_kind: str
    task: TaskName = "classification"
    target: str = "label"
    per: NDArray[np.str_] | None = None
    per_name: str = ""

    def of(self, split: str) -> Ints:
        """Return positions (not cache rows) of one split."""
        return np.flatnonzero(self.split == split)

    @property
    def held_out(self) -> str:
        """Name of the split that measures: test where there is one, or else val."""
        return "test" if (self.split == "test").any() else "val"

    def kept(self, mask: NDArray[np.bool_]) -> Rows:
        """Return these of the rows."""
        return replace(
            self,
            index=self.index[mask],
            y=self.y[mask],
            groups=None if self.groups is None else self.groups[mask],
            split=self.split[mask],
            per=None if self.per is None else self.per[mask],
        )


def read_rows(embeddings: NDArray[Any], index: Ints) -> NDArray[np.float32]:
    """Copy rows of the map into memory as float32.

    Raises
    ------
    HeadError
        Where a value is not finite.
    """
    X = np.asarray(embeddings[index], dtype=np.float32)
    if not np.isfinite(X).all():
        bad = int(index[np.flatnonzero(~np.isfinite(X).all(axis=1))[0]])
        raise not_finite_error(HeadError, bad)
    return X


def select_rows(
    cache: Cache, target: Target, embeddings: NDArray[Any], settings: FitSettings, note: Callable[[str], None]
) -> Rows:
    """Choose the rows that are done and have a target, group them, and split them.

    Parameters
    ----------
    cache : Cache
        The cache.
    target : Target
        What is to be learned.
    embeddings : ndarray of shape (rows of the cache, D)
        The layer, in which near duplicates are looked for.
    settings : FitSettings
        ``groups``, ``per``, ``group_duplicates``, ``test_share`` and ``seed`` count.
    note : callable
        Called with a line about what is left out.

    Raises
    ------
    HeadError
        No target, one class only, an unusable split column, or groups that contradict labels or splits.
    """
    index = _usable_rows(cache, target, note)
    columns = cache.columns
    groups, per = read_groups(cache, index, settings, note)
    split, kind = np.full(len(index), "", dtype="<U5"), "hold-out"
    if "split" in columns:
        split, kind = splits.named_split(np.asarray(columns["split"])[index]), "column"
        if not (split == "train").any():
            raise HeadError("the split column has no labelled row that says train: mark the training rows")
        used = split != ""
        if not np.isin(split, ("test", "val")).any():
            note(f"the split column says train only: {settings.test_share:.0%} of its rows are held out instead")
            used, kind = split == "train", "hold-out"
        elif not used.all():
            note(f"left out: {counted(int((~used).sum()), 'row')} whose split is empty")
        index, split = index[used], split[used]
        groups, per = (None if each is None else each[used] for each in (groups, per))
    if per is not None and settings.per is not None:
        check_groups(per, settings.per, target, target.y[index], split if kind == "column" else None)
    facts = (index, target.y[index], target.names, groups, split, kind, target.task, target.name)
    rows = Rows(*facts, per=per, per_name=settings.per or "")
    if rows.task == "classification":
        rows = _with_classes(rows, np.unique(rows.y))
    if groups is not None and kind == "column":
        _note_shared_groups(rows, note)
    if settings.group_duplicates is not None:
        rows = _group_duplicates(cache, rows, embeddings, settings.group_duplicates, note)
    if kind == "hold-out":
        rows = _with_hold_out(rows, settings)
    if rows.task != "regression":
        _note_twins(rows.class_names, note)
    if rows.task == "classification":
        return _known_classes(rows, note)
    return _learnable_labels(rows, note) if rows.task == "multilabel" else _enough_numbers(rows)


def _with_hold_out(rows: Rows, settings: FitSettings) -> Rows:
    held = splits.hold_out(
        TASKS[rows.task].strata(rows.y, settings.test_share * len(rows.y)),
        share=settings.test_share,
        seed=settings.seed,
        groups=rows.groups,
        every_class=rows.task == "classification",
    )
    return replace(rows, split=held)


def _usable_rows(cache: Cache, target: Target, note: Callable[[str], None]) -> Ints:
    done = np.asarray(cache.status) == Status.DONE
    if not done.any():
        raise HeadError(f"none of the {len(cache)} rows of {cache.path} is done: finish pipeline extract first")
    if not (done & target.known).any():
        if target.name != "label":
            raise HeadError(
                f"none of the {int(done.sum())} rows that are done has a value in {target.name!r}: name another column"
            )
        raise HeadError(
            f"none of the {int(done.sum())} rows that are done has a label: put the images into class folders, "
            "or give a table with a column 'label', and extract again"
        )
    if not done.all():
        note(f"left out: {int((~done).sum())} of {len(cache)} rows that failed or are still to do")
    if not target.known[done].all():
        without = int((done & ~target.known).sum())
        note(f"left out: {without} of {int(done.sum())} rows without a label")
    return np.flatnonzero(done & target.known)


# --- groups --------------------------------------------------------------------------------------------------


def _note_shared_groups(rows: Rows, note: Callable[[str], None]) -> None:
    assert rows.groups is not None
    shared = np.intersect1d(rows.groups[rows.of("train")], rows.groups[rows.split != "train"])
    if len(shared):
        which = f"{counted(len(shared), 'group')} (such as {shared[0]}) {'lies' if len(shared) == 1 else 'lie'}"
        note(f"{which} on both sides of the split column: the figures may flatter")


def _group_duplicates(
    cache: Cache, rows: Rows, embeddings: NDArray[Any], threshold: float, note: Callable[[str], None]
) -> Rows:
    """Make near duplicates groups; where a group lies on both sides of the split column, drop its held-out rows."""
    duplicates = duplicate_groups(embeddings, cache.content_hash, threshold, rows=rows.index)
    duplicates = np.searchsorted(rows.index, duplicates)
    size = np.bincount(duplicates, minlength=len(duplicates))
    several = size[size > 1]
    note(
        f"near duplicates (cosine from {threshold:g}): {counted(len(several), 'group')} with {int(several.sum())} of "
        f"{len(duplicates)} rows, the largest of {int(size.max())}"
    )
    if rows.split_kind == "column":
        trained_on = np.isin(duplicates, duplicates[rows.of("train")]) & (rows.split != "train")
        if trained_on.all() or not (~trained_on & (rows.split != "train")).any():
            raise HeadError(
                f"every held-out row has a near duplicate among the training rows at cosine {threshold:g}: "
                "raise --group-duplicates, or split otherwise"
            )
        if trained_on.any():
            dropped = counted(int(trained_on.sum()), "held-out row")
            note(f"left out: {dropped} with a near duplicate among the training rows")
            rows, duplicates = rows.kept(~trained_on), duplicates[~trained_on]
    return replace(rows, groups=_joined(duplicates, rows.groups))


def _joined(duplicates: Ints, groups: NDArray[Any] | None) -> Ints:
    """Return groups of rows that are connected by either of two groupings."""

    def links(names: NDArray[Any]) -> tuple[Ints, Ints]:
        _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
        return first[inverse.ravel()], np.arange(len(names))

    pairs = [links(duplicates)] + ([] if groups is None else [links(groups)])
    return groups_of(len(duplicates), np.concatenate([i for i, _ in pairs]), np.concatenate([j for _, j in pairs]))


# --- what the training rows allow -----------------------------------------------------------------------------


def _with_classes(rows: Rows, used: Ints) -> Rows:
    """Keep these classes, numbered from 0."""
    names = tuple(rows.class_names[k] for k in used)
    if len(names) < 2:
        raise HeadError(
            f"expected labelled rows of at least 2 classes, found only {names[0]!r}: "
            "add images of another class and extract again"
        )
    return replace(rows, y=np.searchsorted(used, rows.y).astype(np.int64), class_names=names)


def _note_twins(names: tuple[str, ...], note: Callable[[str], None]) -> None:
    """Report names that a reader takes for one: they differ in case, in blanks, or in how Unicode writes them."""
    by_form: dict[str, list[str]] = {}
    for name in names:
        by_form.setdefault(" ".join(name_form(name).casefold().split()), []).append(name)
    twins = [" and ".join(map(repr, same)) for same in by_form.values() if len(same) > 1]
    if twins:
        note(f"names that differ only in case, blanks or Unicode form: {_some(twins)}: give one name to each class")


def _known_classes(rows: Rows, note: Callable[[str], None]) -> Rows:
    """Drop held-out rows of classes that no training row has."""
    known = np.unique(rows.y[rows.of("train")])
    if len(known) == len(rows.class_names):
        return rows
    kept = np.isin(rows.y, known)
    if not kept[rows.split != "train"].any():
        raise HeadError(
            "no held-out row is of a class that the training rows have: mark other rows in the split column"
        )
    missing = [name for k, name in enumerate(rows.class_names) if k not in known]
    note(
        f"left out: {counted(int((~kept).sum()), 'held-out row')} of classes without a training row ({_some(missing)})"
    )
    return _with_classes(rows.kept(kept), known)


def _learnable_labels(rows: Rows, note: Callable[[str], None]) -> Rows:
    """Drop labels that fewer than two training rows (or groups) have, or lack."""
    train = rows.of("train")
    groups = None if rows.groups is None else rows.groups[train]
    columns = rows.y[train].T
    kept = np.asarray([len(np.unique(c)) == 2 and _units_of_fewest(c, groups) >= 2 for c in columns])
    if kept.sum() < 2:
        raise HeadError(
            "expected at least 2 labels that some training rows have and others have not, found "
            f"{int(kept.sum())}: add images, or take --task classification"
        )
    if not kept.all():
        missing = [name for name, keep in zip(rows.class_names, kept, strict=True) if not keep]
        dropped = counted(len(missing), "label")
        note(f"left out: {dropped} that fewer than two training rows have, or lack ({_some(missing)})")
    names = tuple(name for name, keep in zip(rows.class_names, kept, strict=True) if keep)
    return replace(rows, y=rows.y[:, kept], class_names=names)


def _units_of_fewest(y: NDArray[Any], groups: NDArray[Any] | None) -> int:
    """Return the number of rows, or groups, of the class that has the fewest."""
    return min(len(np.unique(groups[y == k])) if groups is not None else int((y == k).sum()) for k in np.unique(y))


def _enough_numbers(rows: Rows) -> Rows:
    numbers = np.unique(rows.y[rows.of("train")])
    if len(numbers) < 2:
        raise HeadError(
            f"expected different numbers among the training rows of {rows.target!r}, found only {numbers[0]:g}: "
            "name another column with --target"
        )
    return rows


def possible_folds(rows: Rows, wanted: int, note: Callable[[str], None]) -> int:
    """Return how many folds the training rows allow, at most ``wanted``.

    A class of a single row (or group) is held out by no fold; a note reports it.

    Raises
    ------
    HeadError
        Where nothing can be held out, or fewer than 2 folds are wanted.
    """
    if wanted < 2:
        raise HeadError(f"cross-validation needs at least 2 folds, got {wanted}")
    train = rows.of("train")
    groups = None if rows.groups is None else rows.groups[train]
    what = "row" if groups is None else "group"
    if rows.task != "classification":
        most = len(train) if groups is None else len(np.unique(groups))
        if most < 2:
            raise HeadError(f"expected at least 2 training {what}s, found {most}: add images")
        return min(most, wanted)
    y = rows.y[train]
    count = splits.fold_count(y, wanted, groups)
    if count < 2:
        raise HeadError(f"expected a class with at least 2 training {what}s, found 1 of each: add images")
    alone = [name for k, name in enumerate(rows.class_names) if _units_of_fewest(y[y == k], _part(groups, y == k)) < 2]
    if alone:
        note(
            f"trained on, but held out by no fold: {counted(len(alone), 'class', 'classes')} with a single training "
            f"{what} ({_some(alone)}): add images of them, or look for a mistyped label"
        )
    if count < wanted:
        note(f"{count} folds instead of {wanted}: there are {count} training {what}s to hold out")
    return count


def _part(groups: NDArray[Any] | None, rows: NDArray[np.bool_]) -> NDArray[Any] | None:
    return None if groups is None else groups[rows]


def _some(names: list[str]) -> str:
    """Return the first few names, as they are."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
