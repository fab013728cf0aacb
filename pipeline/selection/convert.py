"""A selection of a cache as what other libraries take: pandas, Arrow, AnnData; each is imported when asked for.

PyTorch's part is `pipeline.selection.torch`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.items import DONE, Status
from pipeline.core.spec import PENULTIMATE, canonical_json
from pipeline.core.text import free_name, valid_text
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import anndata
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.selection.selection import Selection

OWN_NAMES = ("key", "label", "status", "embedding")
"""What tables call what a cache itself knows, beside ``e0``, ``e1``, …; a column called so becomes ``column_NAME``."""


def to_pandas(selection: Selection, layer: str | None = PENULTIMATE) -> pd.DataFrame:
    """Return a data frame with a line for each row.

    Parameters
    ----------
    selection : Selection
    layer : str or None
        Whose embeddings to put in; None for none.

    Returns
    -------
    DataFrame
        Indexed by ``key``: ``label`` (categorical, missing where there is none), ``status`` where the selection holds
        more than done rows, the further columns, then the embedding as ``e0`` to ``e{D-1}``, of the cache's type. The
        embeddings are copied by pandas as it likes.

    Raises
    ------
    PipelineError
        The cache has no such layer.
    """
    import pandas as pd

    index = pd.Index(valid_text(selection.keys), name="key")
    facts = pd.DataFrame(_facts(selection), index=index)
    if layer is None:
        return facts
    names = [f"e{i}" for i in range(selection.layer_width(layer))]
    return pd.concat([facts, pd.DataFrame(selection.layers[layer], index=index, columns=names)], axis=1)


def to_arrow(selection: Selection, layer: str | None = PENULTIMATE) -> pa.Table:
    """Return an Arrow table with a line for each row.

    Parameters
    ----------
    selection : Selection
    layer : str or None
        Whose embeddings to put in; None for none.

    Returns
    -------
    Table
        ``key``, ``label`` (dictionary, null where there is none), ``status`` where the selection holds more than done
        rows, the further columns, and ``embedding``, a list of fixed size D of the cache's type: over the map of the
        file where the rows follow each other, without a copy. The schema's metadata hold ``spec`` and ``fingerprint``.

    Raises
    ------
    PipelineError
        The cache has no such layer.
    """
    import pyarrow as pa

    label = pa.DictionaryArray.from_arrays(
        pa.array(selection.labels, mask=selection.labels < 0),
        pa.array(valid_text(selection.label_names), pa.string()),
    )
    columns = {"key": pa.array(valid_text(selection.keys), pa.string()), "label": label}
    for name, values in _facts(selection).items():
        if name != "label":
            columns[name] = pa.array(values)
    if layer is not None:
        width = selection.layer_width(layer)
        flat = pa.array(np.ascontiguousarray(selection.layers[layer]).reshape(-1))
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, width)
    metadata = {"spec": canonical_json(selection.spec), "fingerprint": selection.fingerprint}
    return pa.table(columns).replace_schema_metadata(metadata)


def to_anndata(selection: Selection, layer: str = PENULTIMATE) -> anndata.AnnData:
    """Return an annotated matrix, as scanpy and its relatives take it.

    Parameters
    ----------
    selection : Selection
    layer : str
        Whose embeddings are ``X``.

    Returns
    -------
    AnnData
        ``X`` (n, D) the embeddings, over the map of the file where the rows follow each other; ``obs`` the label and
        the further columns, named by key; ``obsm`` the other layers; ``uns`` the spec as JSON and the fingerprint.

    Raises
    ------
    PipelineError
        anndata is not installed, or the cache has no such layer.
    """
    try:
        import anndata
    except ImportError:
        raise PipelineError(
            "this needs anndata, which is not installed: pip install 'embedding-pipeline[analysis]'"
        ) from None
    width = selection.layer_width(layer)
    return anndata.AnnData(
        X=np.asarray(selection.layers[layer]),  # anndata writes no subclass of ndarray, such as a map; this is a view
        obs=to_pandas(selection, None).rename_axis(None),
        var={"feature": [f"e{i}" for i in range(width)]},
        obsm={name: np.asarray(selection.layers[name]) for name in selection.layers if name != layer},
        uns={"spec": canonical_json(selection.spec), "fingerprint": selection.fingerprint},
    )


def _facts(selection: Selection) -> dict[str, Any]:
    """Return what is known of each row beside its key and embedding: label, status where it matters, columns."""
    import pandas as pd

    facts: dict[str, Any] = {
        "label": pd.Categorical.from_codes(selection.labels, categories=valid_text(selection.label_names))
    }
    if selection.wanted_status != DONE:
        names = {int(code): code.name.lower() for code in Status}
        facts["status"] = [names.get(code, str(code)) for code in selection.status.tolist()]
    for name, values in _named(selection):
        facts[name] = valid_text(values) if values.dtype.kind == "U" else values
    return facts


def _named(selection: Selection) -> Iterator[tuple[str, NDArray[Any]]]:
    names = list(selection.columns)
    shown = valid_text(tuple(names))
    for name, text in zip(names, shown, strict=True):
        is_own = text in OWN_NAMES or re.fullmatch("e[0-9]+", text) is not None
        yield free_name(text, {*shown, *OWN_NAMES}) if is_own else text, selection.columns[name]
