"""Columns of values beside the embeddings of a head: numbers standardised, categories as one column for each level.

The encoder is fitted on training rows alone and is plain JSON in the file of a head. Missing numbers become the mean,
and a further column marks them where training rows lack values too. A missing category is a level of its own where
training rows lack one too. A category that no training row has, and a gap that none has, is all zeros.

Axes: N rows, E encoded columns.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self

import numpy as np

from pipeline.core.columns import EXACT, MISSING_WORDS, number_of
from pipeline.errors import HeadError, near_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Floats = NDArray[np.float64]

Kind = Literal["number", "category"]
NUMBER: Final = "number"
CATEGORY: Final = "category"
KINDS: tuple[Kind, ...] = (NUMBER, CATEGORY)
"""What a column can be taken as."""


def kind_of(values: Array) -> Kind:
    """Return what a column holds: numbers where every value is one, else categories.

    Examples
    --------
    >>> kind_of(np.array(["1.5", "", "n/a"])), kind_of(np.array(["1.5", "b"])), kind_of(np.array([True, False]))
    ('number', 'category', 'category')
    """
    if values.dtype.kind in "fiu":
        return NUMBER
    if values.dtype.kind == "b":
        return CATEGORY
    texts = [text for text in (text.strip() for text in np.unique(values).tolist()) if not _is_gap(text)]
    return NUMBER if texts and all(_number(text) is not None for text in texts) else CATEGORY


def numbers_of(values: Array, name: str) -> Floats:
    """Return a column as numbers (N,), NaN where there is none.

    Raises
    ------
    HeadError
        A value is no finite number.
    """
    if values.dtype.kind in "fiub":
        found = values.astype(np.float64)
        wrong = values[np.isinf(found)]
    else:
        texts, codes = np.unique(values, return_inverse=True)
        parsed = [np.nan if _is_gap(text.strip()) else _number(text) for text in texts.tolist()]
        wrong = texts[[number is None for number in parsed]]
        found = np.array([np.nan if number is None else number for number in parsed] or [np.nan])[codes.ravel()]
    if len(wrong):
        raise HeadError(
            f"column {name!r}: expected numbers, found {str(wrong[0])!r}: correct it, or leave the cell empty"
        )
    return found


def levels_of(values: Array) -> NDArray[np.str_]:
    """Return a column as names of categories (N,), empty where there is none.

    A name depends on its own value alone: 3, 3.0 and "3" are one category, whatever else the column holds.

    Examples
    --------
    >>> levels_of(np.array([3.0, 0.5, np.nan])).tolist(), levels_of(np.array([" a ", ""])).tolist()
    (['3', '0.5', ''], ['a', ''])
    """
    if not len(values):
        return np.zeros(0, dtype=np.str_)
    if values.dtype.kind != "f":
        return np.char.strip(values.astype(np.str_))
    found, codes = np.unique(values, return_inverse=True)
    names = [
        "" if np.isnan(value) else str(int(value)) if value.is_integer() and abs(value) < EXACT else repr(value)
        for value in found.astype(np.float64).tolist()
    ]
    return np.array(names, dtype=np.str_)[codes.ravel()]


def plain_values(values: Array, name: str, kind: Kind) -> Array:
    """Return a column as its kind is encoded: float64 with NaN, or text with gaps empty."""
    return numbers_of(values, name) if kind == NUMBER else levels_of(values)


def _is_gap(text: str) -> bool:
    return text.lower() in MISSING_WORDS


def _number(text: str) -> float | None:
    number = number_of(text)
    return number if number is not None and np.isfinite(number) else None


_LARGEST = 100.0
"""Standard deviations from the mean beyond which a number counts as this far.

It is a slip such as 99999 for none. Held out by a fold, it would get scores without bound, and the one temperature that
these allow would make every other row unsure.
"""


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers.

    Attributes
    ----------
    name : str
    mean, scale : float
        Of the training rows; scale is their standard deviation, 1 where they do not vary.
    gaps : bool
        Whether a training row had none: then a second column is 1 where the number is missing.
    """

    kind: ClassVar[Kind] = NUMBER
    name: str
    mean: float
    scale: float
    gaps: bool

    @classmethod
    def fit(cls, name: str, values: Floats) -> Self:
        """Take mean and scale from the values of training rows."""
        known = values[np.isfinite(values)]
        scale = float(known.std()) if len(known) else 0.0
        mean = float(known.mean()) if len(known) else 0.0
        return cls(name, mean, scale if scale > 0 else 1.0, len(known) < len(values))

    @property
    def width(self) -> int:
        """Number of encoded columns."""
        return 1 + self.gaps

    def encode(self, values: Floats) -> NDArray[np.float32]:
        """Return the encoded columns (N, 1 or 2)."""
        missing = np.isnan(values)
        with np.errstate(over="ignore"):
            scaled = np.where(missing, 0.0, (values - self.mean) / self.scale).clip(-_LARGEST, _LARGEST)
        return np.stack([scaled, missing] if self.gaps else [scaled], axis=1).astype(np.float32)

    def unknown(self, values: Floats) -> NDArray[np.bool_]:
        """Return which rows (N,) have a value of a kind that no training row had: a gap."""
        return np.isnan(values) & (not self.gaps)


@dataclass(frozen=True)
class CategoryColumn:
    """A column of categories.

    Attributes
    ----------
    name : str
    levels : tuple of str
        Those of the training rows, sorted: a column each.
    gaps : bool
        Whether a training row had none: then a last column is 1 where it is missing.
    """

    kind: ClassVar[Kind] = CATEGORY
    name: str
    levels: tuple[str, ...]
    gaps: bool

    @classmethod
    def fit(cls, name: str, values: NDArray[np.str_]) -> Self:
        """Take the levels from the values of training rows."""
        found = np.unique(values).tolist()
        return cls(name, tuple(level for level in found if level), "" in found)

    @property
    def width(self) -> int:
        """Number of encoded columns."""
        return len(self.levels) + self.gaps

    def encode(self, values: NDArray[np.str_]) -> NDArray[np.float32]:
        """Return the encoded columns (N, levels, and one for gaps)."""
        out = np.zeros((len(values), self.width), dtype=np.float32)
        every = np.array([*self.levels, *([""] if self.gaps else [])], dtype=np.str_)
        if len(every):
            order = np.argsort(every)
            at = order[np.minimum(np.searchsorted(every, values, sorter=order), len(every) - 1)]
            known = every[at] == values
            out[np.flatnonzero(known), at[known]] = 1.0
        return out

    def unknown(self, values: NDArray[np.str_]) -> NDArray[np.bool_]:
        """Return which rows (N,) have a category, or a gap, that no training row had."""
        return ~np.isin(values, [*self.levels, *([""] if self.gaps else [])])


Column = NumberColumn | CategoryColumn


def _fitted(name: str, values: Array, kind: Kind) -> Column:
    return NumberColumn.fit(name, values) if kind == NUMBER else CategoryColumn.fit(name, values)


@dataclass(frozen=True)
class ColumnEncoder:
    """Columns of values as columns of features, as the training rows say.

    Attributes
    ----------
    columns : tuple of NumberColumn or CategoryColumn
        In the order of their features.
    """

    columns: tuple[Column, ...]

    @classmethod
    def fit(cls, values: Mapping[str, Array], kinds: Mapping[str, Kind]) -> Self:
        """Fit on training rows.

        Parameters
        ----------
        values : mapping of str to ndarray of shape (N,)
            Of training rows alone, as `plain_values` returns them.
        kinds : mapping of str to str
            What each is, in the order of the features.
        """
        return cls(tuple(_fitted(name, values[name], kind) for name, kind in kinds.items()))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(column.name for column in self.columns)

    @property
    def width(self) -> int:
        """Number E of encoded columns."""
        return sum(column.width for column in self.columns)

    def read(self, columns: Mapping[str, Array], where: str) -> dict[str, Array]:
        """Return the values that are encoded, out of the columns of a table.

        Parameters
        ----------
        columns : mapping of str to ndarray of shape (N,)
        where : str
            What the table is called in messages.

        Raises
        ------
        HeadError
            A column is missing, or a number is none.
        """
        for name in self.names:
            if name not in columns:
                known = near_names(name, columns) if len(columns) else "it has none"
                raise HeadError(
                    f"{where}: expected the column {name!r}, which the head was fitted with, found none of this name "
                    f"({known}): name the images by a table that has it"
                )
        return {column.name: plain_values(np.asarray(columns[column.name]), column.name, column.kind)
                for column in self.columns}  # fmt: skip

    def encode(self, values: Mapping[str, Array], rows: Any = slice(None)) -> NDArray[np.float32]:
        """Return the features (N, E) of some rows of values from `read`."""
        return np.concatenate([column.encode(values[column.name][rows]) for column in self.columns], axis=1)

    def unknown(self, values: Mapping[str, Array]) -> dict[str, int]:
        """Return how many rows have a value of a column that no training row had, where there are any."""
        counts = {column.name: int(column.unknown(values[column.name]).sum()) for column in self.columns}
        return {name: count for name, count in counts.items() if count}

    def to_json(self) -> list[dict[str, Any]]:
        """Return what the file of a head holds."""
        facts = [{"kind": column.kind, **asdict(column)} for column in self.columns]
        return [entry | ({"levels": list(entry["levels"])} if "levels" in entry else {}) for entry in facts]

    @classmethod
    def from_json(cls, found: Any) -> Self:
        """Return the encoder that a file holds, which is not trusted.

        Raises
        ------
        HeadError
            It is no encoder.
        """
        if not isinstance(found, list) or not found or not all(isinstance(entry, dict) for entry in found):
            raise HeadError(f"expected columns as a list of objects, found {found!r}")
        columns = tuple(map(_column_of_json, found))
        if len({column.name for column in columns}) < len(columns):
            raise HeadError("a column occurs twice")
        if not sum(column.width for column in columns):
            raise HeadError("columns of no width")
        return cls(columns)


def _column_of_json(entry: dict[str, Any]) -> Column:
    name, kind, gaps = entry.get("name"), entry.get("kind"), entry.get("gaps")
    fields = {NUMBER: {"mean", "scale"}, CATEGORY: {"levels"}}.get(kind if isinstance(kind, str) else "")
    if fields is None or entry.keys() != fields | {"name", "kind", "gaps"}:
        raise HeadError(f"expected a column of kind {' or '.join(KINDS)}, found {entry!r}")
    if not isinstance(name, str) or not isinstance(gaps, bool):
        raise HeadError(f"expected a name as text and gaps as a truth value, found {entry!r}")
    if kind == CATEGORY:
        levels = entry["levels"]
        if not isinstance(levels, list) or not all(isinstance(level, str) and level for level in levels):
            raise HeadError(f"expected levels of {name!r} as texts, found {levels!r}")
        if len(set(levels)) < len(levels):
            raise HeadError(f"a level of {name!r} occurs twice")
        return CategoryColumn(name, tuple(levels), gaps)
    mean, scale = entry["mean"], entry["scale"]
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (mean, scale)):
        raise HeadError(f"expected mean and scale of {name!r} as numbers, found {mean!r} and {scale!r}")
    if not (np.isfinite(mean) and np.isfinite(scale) and scale > 0):
        raise HeadError(f"expected a finite mean and a scale above 0 of {name!r}, found {mean!r} and {scale!r}")
    return NumberColumn(name, float(mean), float(scale), gaps)


class EncodedColumns:
    """Encoded columns of all rows of a cache, made when rows are asked for.

    Parameters
    ----------
    encoder : ColumnEncoder
    values : mapping of str to ndarray of shape (rows of the cache,)
        From `ColumnEncoder.read`.

    Attributes
    ----------
    shape : tuple of int
        Rows of the cache, and E.
    dtype : dtype
        float32.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, encoder: ColumnEncoder, values: Mapping[str, Array]) -> None:
        self.encoder, self.values = encoder, values
        self.shape = (len(next(iter(values.values()))), encoder.width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        return self.encoder.encode(self.values, rows)

    def refitted(self, rows: NDArray[np.int64]) -> EncodedColumns:
        """Return the columns as an encoder fitted on these rows alone encodes them."""
        kinds = {column.name: column.kind for column in self.encoder.columns}
        training = {name: values[rows] for name, values in self.values.items()}
        return EncodedColumns(ColumnEncoder.fit(training, kinds), self.values)

    def only(self, names: Iterable[str]) -> EncodedColumns:
        """Return these of the columns."""
        kept = tuple(column for column in self.encoder.columns if column.name in set(names))
        return EncodedColumns(ColumnEncoder(kept), self.values)


class FurtherColumns:
    """The columns of images that a head predicts, batch by batch, where it was fitted with columns.

    Parameters
    ----------
    encoder : ColumnEncoder or None
        That of the head.
    columns : mapping of str to ndarray of shape (N,)
        Of the images.
    where : str
        What the images are called in messages.

    Raises
    ------
    HeadError
        As for `ColumnEncoder.read`.
    """

    def __init__(self, encoder: ColumnEncoder | None, columns: Mapping[str, Array], where: str) -> None:
        self._encoder = encoder
        self._values = {} if encoder is None else encoder.read(columns, where)

    def beside(self, embeddings: NDArray[Any], rows: Any) -> NDArray[Any]:
        """Return embeddings (n, D) of some of the images, with their encoded columns."""
        if self._encoder is None:
            return embeddings
        return np.concatenate([embeddings, self._encoder.encode(self._values, rows)], axis=1)

    def lines(self) -> list[str]:
        """Return what is to be known of the columns."""
        if self._encoder is None:
            return []
        return [
            f"column {name!r}: {count} images have a value, or a gap, that no training image has"
            for name, count in self._encoder.unknown(self._values).items()
        ]
