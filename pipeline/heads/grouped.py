"""One answer for each group of images that a head predicts, batch by batch.

Axes: N images, n of a batch, G groups, K classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

import numpy as np

from pipeline.core.columns import as_names
from pipeline.core.csv_rows import csv_writer
from pipeline.errors import HeadError, near_names
from pipeline.evaluation.pooling import EMBEDDINGS, MAX, Pooling, numbered
from pipeline.evaluation.splits import given_group, groups_of_column
from pipeline.evaluation.tasks import TASKS
from pipeline.heads.saved import load_group_head

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from pipeline.heads.saved import LoadedHead

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Grouping:
    """How a head answers for groups, before the images are known.

    Attributes
    ----------
    head : LoadedHead
        The head on images.
    pooling : Pooling
        With the column of the images that names the groups.
    on_means : LoadedHead or None
        The head on mean embeddings, where that is the pooling.
    """

    head: LoadedHead
    pooling: Pooling
    on_means: LoadedHead | None

    @classmethod
    def of(cls, head: LoadedHead, run: str | os.PathLike[str], per: str) -> Grouping:
        """Return how the head of a run answers for the groups of a column: by the mean where it was not fitted to.

        Raises
        ------
        HeadError
            The run lacks its head on mean embeddings.
        """
        if head.pooling is None:
            return cls(head, Pooling(per), None)
        pooling = Pooling(per, head.pooling.how, head.pooling.temperature)
        return cls(head, pooling, load_group_head(run) if pooling.how == EMBEDDINGS else None)

    def lines(self) -> list[str]:
        """Return what is to be known of the answers."""
        if self.head.pooling is not None:
            return []
        return [
            f"--per {self.pooling.per}: the run was fitted without --per, so its answers are the mean of "
            "log-probabilities, with no temperature of their own"
        ]


class GroupAnswers:
    """The answers for the groups of some images.

    Parameters
    ----------
    grouping : Grouping
    columns : mapping of str to ndarray of shape (N,)
        Of the images.
    where : str
        What the images are called in messages.

    Raises
    ------
    HeadError
        There is no such column.
    """

    def __init__(self, grouping: Grouping, columns: Mapping[str, NDArray[Any]], where: str) -> None:
        per = grouping.pooling.per
        if per not in columns:
            known = near_names(per, columns) if len(columns) else "there are none: name the images by a table"
            raise HeadError(f"--per {per}: expected a column of {where}, found none of this name: {known}")
        self._grouping = grouping
        self._names, self._code, _ = numbered(groups_of_column(as_names(np.asarray(columns[per]))))
        count, head = len(self._names), grouping.head
        width = head.width if grouping.on_means is not None else head.model.outputs
        least = -np.inf if grouping.pooling.how == MAX else 0.0
        self._pooled = np.full((count, width), least)
        self._images, self._failed = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        self._keys = [""] * count
        self._seen = 0

    def add(self, keys: Sequence[str], features: NDArray[Any], reasons: Sequence[str], predictions: Floats) -> None:
        """Take the next images in their order: features (n, D), why each failed (or ""), and predictions (n, K)."""
        code = self._code[self._seen : self._seen + len(keys)]
        self._seen += len(keys)
        for number, key in zip(code.tolist(), keys, strict=True):
            self._keys[number] = self._keys[number] or key
        good = np.asarray([not reason for reason in reasons], dtype=np.bool_)
        np.add.at(self._images, code, 1)
        np.add.at(self._failed, code[~good], 1)
        if self._grouping.on_means is not None:
            np.add.at(self._pooled, code[good], np.asarray(features[good], dtype=np.float64))
            return
        evidence = TASKS[self._grouping.head.task].evidence(np.asarray(predictions[good], dtype=np.float64))
        pool = np.maximum if self._grouping.pooling.how == MAX else np.add
        pool.at(self._pooled, code[good], evidence)

    def predictions(self) -> Floats:
        """Return the predictions (G, K); those of groups without an image that could be read are not defined."""
        grouping, known = self._grouping, (self._images - self._failed)[:, None]
        pooled = np.where(known > 0, self._pooled, 0.0)
        if grouping.pooling.how != MAX:
            pooled = pooled / np.maximum(known, 1)
        if grouping.on_means is not None:
            return grouping.on_means.model.predict_proba(pooled.astype(np.float32))
        return TASKS[grouping.head.task].of_evidence(pooled, grouping.pooling.temperature)

    def write(self, file: TextIO) -> None:
        """Write a line for each group, in the order of the images; an image without a group is one of its own."""
        head, task = self._grouping.head, TASKS[self._grouping.head.task]
        lines = csv_writer(file)
        lines.writerow(["group", "key", "rows", "failed", *task.header(head.class_names), "error"])
        for i, predicted in enumerate(self.predictions()):
            cells = task.cells(predicted, head.class_names)
            error = "" if self._failed[i] < self._images[i] else "every image failed"
            cells = [""] * len(cells) if error else cells
            lines.writerow(
                [given_group(self._names[i]), self._keys[i], self._images[i], self._failed[i], *cells, error]
            )
