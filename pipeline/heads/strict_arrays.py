"""Safetensors files that are not trusted: arrays and JSON, read here before any library sees them.

The header is bounded and parsed, keys that occur twice are refused, and the arrays must fill the file exactly.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import HeadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LARGEST_HEADER = 64 << 20
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "I64": np.dtype("<i8")}


def read_arrays(data: bytes, name: str) -> tuple[Any, dict[str, NDArray[Any]]]:
    """Return the JSON that the file's metadata hold under ``name``, and its arrays.

    Parameters
    ----------
    data : bytes
        The whole file.
    name : str
        Of the metadata.

    Raises
    ------
    HeadError
        The file is damaged, or holds arrays that no head has.
    KeyError, TypeError, ValueError, AttributeError
        It is no file of this kind.
    """
    header = _read_header(data)
    return strict_json(header["__metadata__"][name]), _arrays(data, header)


def _read_header(data: bytes) -> dict[str, Any]:
    """Parse the safetensors header, bounded, with no key twice."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(_LARGEST_HEADER, len(data) - 8):
        raise HeadError("not a safetensors file (its header would be larger than the file): fit the head again")
    header = strict_json(data[8 : 8 + size].decode("utf-8"))
    if not isinstance(header, dict):
        raise HeadError("not a safetensors file (no header): fit the head again")
    return header


def _arrays(data: bytes, header: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Return the arrays, which must lie one after the other and fill the file exactly."""
    start = 8 + int.from_bytes(data[:8], "little")
    body = memoryview(data)[start:]
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    at = 0
    arrays = {}
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"][0]):
        dtype, (begin, end) = _DTYPES.get(entry["dtype"]), entry["data_offsets"]
        shape = tuple(entry["shape"])
        if dtype is None or any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
            raise HeadError(f"array {name!r} has type {entry['dtype']!r} or a shape that no head has")
        count = 1
        for n in shape:
            count *= n
        if begin != at or end - begin != count * dtype.itemsize or end > len(body):
            raise HeadError(f"array {name!r} does not lie where its shape says: the file is damaged")
        arrays[name] = np.frombuffer(body[begin:end], dtype=dtype).reshape(shape)
        at = end
    if at != len(body):
        raise HeadError(f"{len(body) - at} bytes follow the last array: the file is damaged")
    return arrays


def strict_json(text: str) -> Any:
    """Parse JSON, refusing what the standard leaves open: a key twice, NaN, infinity."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(items)
        if len(out) != len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise HeadError(f"the key {twice!r} occurs twice: the file is damaged or was tampered with")
        return out

    def constant(name: str) -> Any:
        raise HeadError(f"{name} is no number of JSON")

    return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
