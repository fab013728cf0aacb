"""A selection of a cache for other libraries: pandas, Arrow, AnnData, PyTorch; each is imported on request."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.items import DONE, Status
from pipeline.core.optional import ANALYSIS_EXTRA, optional_part
from pipeline.core.outputs import GENERATOR
from pipeline.core.spec import PENULTIMATE, canonical_json
from pipeline.core.text import free_name, valid_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import anndata
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.selection.torch import EmbeddingDataset

OWN_NAMES = ("key", "label", "status", "embedding")
"""Reserved names in tables, besides ``e0``, ``e1``, …; a column of this name becomes ``column_NAME``."""


_PATHS_OF_ANNDATA = ("_index", ".")
"""Names of columns that in its files are the index and the table itself."""


class Convertible(ABC):
    """The conversions of a selection, based on its properties.

    Attributes
    ----------
    cache : Cache
    rows : (n,) int64
        Row numbers in the file.
    wanted_status : str
        Which outcomes are selected.
    layers, columns : mapping of str to (n, …) array
    """

    cache: Cache
    rows: NDArray[np.int64]
    wanted_status: str
    layers: Mapping[str, NDArray[Any]]
    columns: Mapping[str, NDArray[Any]]

    @property
    @abstractmethod
    def keys(self) -> NDArray[np.str_]:
        """(n,) keys as text."""

    @property
    @abstractmethod
    def labels(self) -> NDArray[np.int32]:
        """(n,) index into ``label_names``; -1 for none."""

    @property
    @abstractmethod
    def status(self) -> NDArray[np.uint8]:
        """(n,) outcomes."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class names of the whole cache, so that a label means the same in every selection."""
        return self.cache.label_names

    @property
    def spec(self) -> dict[str, Any]:
        """Everything that produced the numbers."""
        return self.cache.spec

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the fields of ``spec`` that change numbers."""
        return self.cache.fingerprint

    @abstractmethod
    def layer_width(self, layer: str) -> int:
        """Return the embedding width of a layer."""

    def to_pandas(self, layer: str | None = PENULTIMATE) -> pd.DataFrame:
        """Return a data frame with a line for each row.

        Parameters
        ----------
        layer : str or None
            Whose embeddings to include; None for none.

        Returns
        -------
        DataFrame
            Indexed by ``key``: ``label`` (categorical, missing where there is none), ``status`` where the selection
            holds more than done rows, the further columns, then the embedding as ``e0`` to ``e{D-1}``, of the cache's
            type. pandas may copy the embeddings.

        Raises
        ------
        PipelineError
            The cache has no such layer.
        """
        import pandas as pd

        index = pd.Index(valid_text(self.keys), dtype=object, name="key")
        facts = pd.DataFrame(self._facts()).set_axis(index)
        if layer is None:
            return facts
        names = [f"e{i}" for i in range(self.layer_width(layer))]
        return pd.concat([facts, pd.DataFrame(self.layers[layer], index=index, columns=names)], axis=1)

    def to_arrow(self, layer: str | None = PENULTIMATE) -> pa.Table:
        """Return an Arrow table with a line for each row.

        Parameters
        ----------
        layer : str or None
            Whose embeddings to include; None for none.

        Returns
        -------
        Table
            ``key``, ``label`` (dictionary, null where there is none), ``status`` where the selection holds more than
            done rows, the further columns, and ``embedding``, a list of fixed size D of the cache's type: over the map
            of the file where the rows follow each other, without a copy. The schema's metadata hold ``spec`` and
            ``fingerprint``.

        Raises
        ------
        PipelineError
            The cache has no such layer.
        """
        import pyarrow as pa

        label = pa.DictionaryArray.from_arrays(
            pa.array(self.labels, mask=self.labels < 0),
            pa.array(valid_text(self.label_names), pa.string()),
        )
        columns = {"key": pa.array(valid_text(self.keys), pa.string()), "label": label}
        for name, values in self._facts().items():
            if name != "label":
                columns[name] = pa.array(values)
        if layer is not None:
            width = self.layer_width(layer)
            flat = pa.array(np.ascontiguousarray(self.layers[layer]).reshape(-1))
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, width)
        metadata = {"generator": GENERATOR, "spec": canonical_json(self.spec), "fingerprint": self.fingerprint}
        return pa.table(columns).replace_schema_metadata(metadata)

    def to_anndata(self, layer: str = PENULTIMATE) -> anndata.AnnData:
        """Return an annotated matrix, for scanpy and related tools.

        Parameters
        ----------
        layer : str
            Whose embeddings are ``X``.

        Returns
        -------
        AnnData
            ``X`` (n, D) the embeddings, over the map of the file where the rows follow each other; ``obs`` the label
            and the further columns, named by key, with ``_`` for the ``/`` of a column's name; ``obsm`` the other
            layers; ``uns`` the spec as JSON and the fingerprint.

        Raises
        ------
        PipelineError
            anndata is not installed, or the cache has no such layer.
        """
        with optional_part("this needs anndata", ANALYSIS_EXTRA):
            import anndata
        import pandas as pd

        width = self.layer_width(layer)
        names = [f"e{i}" for i in range(width)]
        return anndata.AnnData(
            X=np.asarray(self.layers[layer]),  # anndata writes no subclass of ndarray, such as a map; this is a view
            obs=_writable_names(self.to_pandas(None).rename_axis(None)),
            var=pd.DataFrame({"feature": _texts(names)}).set_axis(pd.Index(map(str, range(width)), dtype=object)),
            obsm={name: np.asarray(self.layers[name]) for name in self.layers if name != layer},
            uns={"spec": canonical_json(self.spec), "fingerprint": self.fingerprint},
        )

    def _facts(self) -> dict[str, Any]:
        """Return the properties of each row besides key and embedding: label, status if it varies, columns."""
        import pandas as pd

        facts: dict[str, Any] = {
            "label": pd.Categorical.from_codes(
                self.labels, categories=pd.Index(valid_text(self.label_names), dtype=object)
            )
        }
        if self.wanted_status != DONE:
            names = {int(code): code.name.lower() for code in Status}
            facts["status"] = _texts([names.get(code, str(code)) for code in self.status.tolist()])
        for name, values in self._named():
            facts[name] = _texts(valid_text(values)) if values.dtype.kind == "U" else values
        return facts

    def _named(self) -> Iterator[tuple[str, NDArray[Any]]]:
        names = list(self.columns)
        shown = valid_text(tuple(names))
        for name, text in zip(names, shown, strict=True):
            is_own = text in OWN_NAMES or re.fullmatch("e[0-9]+", text) is not None
            yield free_name(text, {*shown, *OWN_NAMES}) if is_own else text, self.columns[name]

    def to_torch(self, layer: str = PENULTIMATE) -> EmbeddingDataset:
        """Return a PyTorch data set of (embedding, label); see `EmbeddingDataset`.

        Raises
        ------
        PipelineError
            The cache has no such layer.
        """
        from pipeline.selection.torch import EmbeddingDataset  # imports torch

        self.layer_width(layer)
        return EmbeddingDataset(self.cache, self.rows, self.labels, layer)


def _writable_names(table: pd.DataFrame) -> pd.DataFrame:
    """Rename the columns that anndata does not write, or writes over others: paths in HDF5, and its own name."""
    taken = {*_PATHS_OF_ANNDATA, *table.columns}
    renamed = {}
    for name in table.columns:
        if "/" in name or name in _PATHS_OF_ANNDATA:
            renamed[name] = free_name(name.replace("/", "_"), taken)
            taken.add(renamed[name])
    return table.rename(columns=renamed)


def _texts(values: Sequence[str]) -> pd.Series[Any]:
    """Return texts as Python objects: the text type that pandas 3 would choose is one that AnnData does not write."""
    import pandas as pd

    return pd.Series(values, dtype=object)
