"""Answers as pages: one HTML file each that needs nothing else, built like the report.

Pages are bounded: a fixed number of pictures, for any size of the cache; the page reports what is left out.
"""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.analysis.outliers import REASONS
from pipeline.core.files import replacing
from pipeline.core.text import counted, valid_text
from pipeline.decoding.errors import DecodeError
from pipeline.decoding.image import DecodePolicy, decode_image
from pipeline.errors import AnalysisError
from pipeline.report.rendering import script_json, templates, thumbnail, unread_note
from pipeline.sources.reopen import image_bytes

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from pipeline.analysis.duplicates import Duplicates
    from pipeline.analysis.labels import LabelCheck
    from pipeline.analysis.outliers import Outliers
    from pipeline.analysis.projection import Projection
    from pipeline.analysis.search import Search
    from pipeline.cache import Cache

MOST_PICTURES = 1000
"""Pictures on a page: about 4 MB."""
MOST_ON_A_MAP = 4000
"""Pictures behind a map: one sheet, about 3 MB."""
_MOST_OF_SOUND_LABELS = 24
"""Pictures, each, of doubtful labels that do not look wrong."""
_MOST_OF_A_REASON = 120
"""Outliers of one reason on a page."""
_SIDE = 112
_TILE = 40


def write_search_page(path: str | os.PathLike[str], cache: Cache, found: Search) -> int:
    """Write a page with the images found for each query; return how many of its pictures cannot be read."""
    page = _Pictures(cache)
    groups: list[dict[str, Any]] = []
    lines = found.table.itertuples()  # in the order of queries and ranks; a text may be called as a key is
    first_text = len(found.queries) - found.texts
    for number, (query, own) in enumerate(zip(found.queries, found.query_rows.tolist(), strict=True)):
        rows = found.rows[number]
        pictures: list[Any] = []
        if number < first_text:
            pictures = [page.item(own, query, [("", "asked for")], asked=True)] if own >= 0 else _outside(query)
        for row, line in zip(rows[rows >= 0].tolist(), lines, strict=False):
            facts = [("", line.label)] if line.label else []
            pictures.append(page.item(row, line.key, [*facts, ("cosine", f"{line.cosine:.4f}")], line.label))
        groups.append({"title": valid_text([query])[0], "pictures": pictures})
    lead = f"{counted(len(groups), 'query', 'queries')} to {Path(cache.path).name}"
    if len(found.table):
        nearest = found.table.groupby("query", sort=False)["cosine"].max()
        ends = f" has a cosine of {nearest.min():.4f}"
        if len(nearest) > 1:
            ends = f" of each has a cosine of {nearest.min():.4f} to {nearest.max():.4f}"
        lead += f" found {counted(len(found.table), 'image')}; the nearest{ends}"
    lead += ". Nearest first, by the cosine of the embeddings."
    return _write_gallery(path, f"Search in {Path(cache.path).name}", lead, groups, page, whole_groups=True)


def write_duplicates_page(path: str | os.PathLike[str], cache: Cache, found: Duplicates) -> int:
    """Write a page with every group of duplicates; return how many of its pictures cannot be read."""
    page = _Pictures(cache)
    groups: list[dict[str, Any]] = []
    table = found.table.assign(row=found.rows)
    left_out = 0
    for number, lines in table.groupby("group"):
        if page.full(len(lines)):
            left_out += 1
            continue
        pictures = [
            page.item(row, key, [("", label or "no label"), (how, f"{similarity:.4f}"), *_at(lines, found, n)], label)
            for n, (key, label, similarity, how, row) in enumerate(
                lines[["key", "label", "similarity", "how", "row"]].itertuples(index=False)
            )
        ]
        groups.append({"title": f"Group {number}", "pictures": pictures})
    judged = "correlation of pixels" if found.by_pixels else "cosine of embeddings"
    where = "" if found.across is None else f", each with images that differ in {found.across}"
    lead = (
        f"{len(table)} images show the same picture as another, in {counted(len(groups) + left_out, 'group')}{where}: "
        f"{counted(found.exact, 'exact pair')}, {counted(found.near, 'near one')} by {judged}."
    )
    if not len(table):
        lead = f"No two images show the same picture{where}, by their bytes and the {judged}."
    if found.leak is not None:
        lead = f"{found.leak[0].upper()}{found.leak[1:]}. {lead}"
    notes = [f"In the table only: {counted(left_out, 'further group')}."] if left_out else []
    return _write_gallery(path, f"Duplicates in {Path(cache.path).name}", lead, groups, page, notes, whole_groups=True)


def _at(lines: Any, found: Duplicates, number: int) -> list[tuple[str, str]]:
    """Return the value of the column in which groups differ, where there is one."""
    if found.across in (None, "label"):
        return []
    # The last column but the row number, which the page adds.
    return [(str(found.across), str(lines.iloc[number, -2]) or "–")]


def write_outliers_page(path: str | os.PathLike[str], cache: Cache, found: Outliers) -> int:
    """Write a page with the outliers by reason; return how many of its pictures cannot be read."""
    page = _Pictures(cache)
    lines = list(zip(found.rows.tolist(), found.table.itertuples(), strict=True))
    groups, left_out = [], 0
    for reason in REASONS:
        having = [lines[n] for n in np.flatnonzero(found.of(reason))]
        left_out += max(len(having) - _MOST_OF_A_REASON, 0)
        pictures = [
            page.item(row, line.key, _facts_of_outlier(line), line.label) for row, line in having[:_MOST_OF_A_REASON]
        ]
        if pictures:
            groups.append({"title": f"{reason[0].upper()}{reason[1:]} ({len(having)})", "pictures": pictures})
    lead = f"{found.summary()}. z counts robust standard deviations from the median image."
    notes = [] if found.by_pixels else ["Images were not read: judged by embeddings alone."]
    notes += [f"In the table only: {counted(left_out, 'further one')}."] if left_out else []
    return _write_gallery(path, f"Outliers in {Path(cache.path).name}", lead, groups, page, notes)


def _facts_of_outlier(line: Any) -> list[tuple[str, str]]:
    facts = [("", line.label or "no label")] + ([("z", f"{line.z:.1f}")] if np.isfinite(line.z) else [])
    return facts + ([("", f"{line.width:.0f} × {line.height:.0f}")] if np.isfinite(line.width) else [])


def write_labels_page(path: str | os.PathLike[str], cache: Cache, found: LabelCheck) -> int:
    """Write a page with the most doubtful labels; return how many of its pictures cannot be read."""
    page = _Pictures(cache)
    issues = int(found.table["is_issue"].sum())
    wrong: list[dict[str, Any]] = []
    otherwise: list[dict[str, Any]] = []
    unsure: list[dict[str, Any]] = []
    for rank, (row, line) in enumerate(zip(found.rows.tolist(), found.table.itertuples(), strict=True)):
        agrees = line.given == line.suggested
        pictures = wrong if line.is_issue else unsure if agrees else otherwise
        if page.full(1) or (not line.is_issue and len(pictures) >= _MOST_OF_SOUND_LABELS):
            continue
        facts = [("given", line.given), ("suggested", line.suggested), ("quality", f"{line.quality:.2g}")]
        item = page.item(row, line.key, facts, f"{line.given} {line.suggested}")
        item["sort"] = {
            "rank": rank,
            "given": valid_text([line.given])[0],
            "suggested": valid_text([line.suggested])[0],
        }
        pictures.append(item)
    groups = [
        {"title": title, "pictures": pictures}
        for title, pictures in (
            (f"Labels that look wrong ({issues})", wrong),
            ("Another label is suggested, though not surely", otherwise),
            ("The suggestion is the label, though not surely", unsure),
        )
        if pictures
    ]
    lead = (
        f"{issues} of {len(found.table)} labels {'looks' if issues == 1 else 'look'} wrong; heads that have not seen a "
        f"row agree with its label in {found.accuracy:.1%}. Quality is their probability of the given label. Hard "
        "images gather here too: look before you relabel."
    )
    notes = [f"Shown: the {len(wrong)} most doubtful; the table has them all."] if len(wrong) < issues else []
    orders = [("rank", "most doubtful first"), ("given", "by given label"), ("suggested", "by suggested label")]
    return _write_gallery(
        path,
        f"Labels of {Path(cache.path).name}",
        lead,
        groups,
        page,
        notes,
        orders=orders,
    )


def write_map_page(path: str | os.PathLike[str], cache: Cache, found: Projection) -> int:
    """Write a page with the map, to zoom, point at and filter; return how many of its pictures cannot be read.

    100 000 points stay smooth.
    """
    names, label = np.unique(found.table["label"].to_numpy(dtype=str), return_inverse=True)
    sprite, pictured, columns = _sprite(cache, found.rows)
    points = {
        "x": _packed(found.table["x"], "<f4"),
        "y": _packed(found.table["y"], "<f4"),
        "label": _packed(label.ravel(), "<i4"),
        "names": valid_text(names),
        "keys": valid_text(found.table["key"]),
        "sprite": sprite,
        "pictured": _packed(pictured, "<i4"),
        "columns": columns,
        "tile": _TILE,
    }
    method = {"pca": "its first two principal components", "umap": "UMAP", "tsne": "t-SNE"}[found.method]
    lead = f"{len(found.table)} images of {Path(cache.path).name}, laid out by {method}{_agreement(found)}."
    if found.method != "pca":
        lead += " Neighbours mean something; distances between groups, and their sizes, do not."
    asked = min(len(found.rows), MOST_ON_A_MAP)
    unread = asked - len(pictured)
    if len(pictured):
        of = f" {len(pictured)} of them, drawn at random," if asked < len(found.rows) else " points"
        lead += f" Zoom in, and{of} become images."
    lead = f"{lead} {unread_note(unread, asked)}".rstrip()
    page = (
        templates()
        .get_template("map.html.j2")
        .render(title=f"Map of {Path(cache.path).name}", lead=lead, points=script_json(points))
    )
    _write_page(path, page)
    return unread


def _agreement(found: Projection) -> str:
    """Say how often neighbours on the map have one label, where there are several labels."""
    from scipy.spatial import cKDTree  # only where a map is written

    labels = found.table["label"].to_numpy(dtype=str)
    labelled = np.flatnonzero(labels != "")
    if len(np.unique(labels[labelled])) < 2:
        return ""
    places = found.table[["x", "y"]].to_numpy(dtype=np.float64)[labelled]
    nearest = cKDTree(places).query(places, k=2)[1][:, 1]
    share = float((labels[labelled][nearest] == labels[labelled]).mean())
    return f"; the nearest labelled neighbour of a point has its label in {share:.0%}"


class _Pictures:
    """Makes thumbnails when they are asked for, and counts them."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._made: dict[int, str | None] = {}

    def full(self, more: int) -> bool:
        """Return whether this many more would be too many."""
        return len(self._made) + more > MOST_PICTURES

    @property
    def asked(self) -> int:
        """How many were asked for."""
        return len(self._made)

    @property
    def unread(self) -> int:
        """How many could not be made."""
        return sum(image is None for image in self._made.values())

    def item(
        self, row: int, key: str, facts: list[tuple[str, str]], label: str = "", *, asked: bool = False
    ) -> dict[str, Any]:
        if row not in self._made and not self.full(1):
            self._made[row] = thumbnail(image_bytes(self._cache, row), _SIDE, 75)
        name = valid_text([key])[0]
        return {
            "image": self._made.get(row),
            "key": name,
            "facts": [(what, valid_text([value])[0]) for what, value in facts],
            "text": f"{name} {valid_text([label])[0]}".lower(),
            "sort": {},
            "asked": asked,
        }


def _outside(query: str) -> list[dict[str, Any]]:
    """Return the picture of a query that is a file."""
    name = valid_text([query])[0]
    try:
        image = thumbnail(Path(query).read_bytes(), _SIDE, 75)
    except OSError:
        image = None
    return [
        {"image": image, "key": name, "facts": [("", "asked for")], "text": name.lower(), "sort": {}, "asked": True}
    ]


def _write_gallery(
    path: str | os.PathLike[str],
    title: str,
    lead: str,
    groups: list[dict[str, Any]],
    page: _Pictures,
    notes: list[str] | None = None,
    *,
    orders: list[tuple[str, str]] | None = None,
    whole_groups: bool = False,
) -> int:
    """Write the page; return how many of its pictures cannot be read."""
    notes = list(notes or [])
    if page.unread:
        notes.append(unread_note(page.unread, page.asked))
    if page.full(1):
        notes.append(f"The page holds {MOST_PICTURES} pictures and no more.")
    template = templates().get_template("gallery.html.j2")
    _write_page(
        path,
        template.render(
            title=title,
            lead=lead,
            groups=groups,
            notes=notes,
            orders=orders or [],
            whole_groups=whole_groups,
        ),
    )
    return page.unread


def _write_page(path: str | os.PathLike[str], page: str) -> None:
    with replacing(path, AnalysisError) as part:
        part.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


def _packed(values: Any, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode("ascii")


def _sprite(cache: Cache, rows: NDArray[np.int64]) -> tuple[str, NDArray[np.int64], int]:
    """Return one sheet of small pictures, which points they belong to, and how many stand in a row."""
    from PIL import Image, ImageOps

    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:MOST_ON_A_MAP])
    tiles, pictured = [], []
    for point in chosen.tolist():
        data = image_bytes(cache, int(rows[point]))
        if data is None:
            continue
        try:
            image = decode_image(data, DecodePolicy(), thumbnail=_TILE)
        except DecodeError:
            continue
        tiles.append(ImageOps.contain(image, (_TILE, _TILE)))
        pictured.append(point)
    if not tiles:
        return "", np.zeros(0, np.int64), 1
    columns = math.ceil(math.sqrt(len(tiles)))
    sheet = Image.new("RGB", (columns * _TILE, -(-len(tiles) // columns) * _TILE), "#eef0f3")
    for n, tile in enumerate(tiles):
        corner = (n % columns * _TILE + (_TILE - tile.width) // 2, n // columns * _TILE + (_TILE - tile.height) // 2)
        sheet.paste(tile, corner)
    buffer = io.BytesIO()
    sheet.save(buffer, format="JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), np.array(pictured), columns
