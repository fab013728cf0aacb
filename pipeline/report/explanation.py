"""The page of explained predictions: image, map and nearest training images of each."""

from __future__ import annotations

import base64
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.text import counted, valid_text
from pipeline.report.rendering import templates, thumbnail
from pipeline.sources.reopen import image_bytes

if TYPE_CHECKING:
    from pipeline.analysis.explain import Explanation, Explanations
    from pipeline.cache import Cache

MOST_EXPLAINED = 200
"""Predictions on a page: seven pictures each."""
_SIDE = 112
_NAMED = 3
"""Predictions that the first sentence names."""


def write_explanation_page(folder: Path, found: Explanations) -> None:
    """Write ``report.html`` into the folder that holds the pictures.

    Parameters
    ----------
    folder : Path
    found : Explanations
    """
    shown = found.items[:MOST_EXPLAINED]
    with_maps = any(item.picture for item in found.items)
    lead = f"{counted(len(found.items), 'prediction')} from {found.layer}{_most_often(found)}."
    if with_maps:
        lead += (
            " Orange areas speak for the predicted class, blue ones against it; the mean of the map is the score, and "
            "the colour is full at the largest contribution of the image."
        )
    notes = list(found.notes)
    if len(shown) < len(found.items):
        notes.append(f"Shown: the first {len(shown)}; explanations.json has them all.")
    groups = [_group(folder, item, found.training) for item in shown]
    page = (
        templates()
        .get_template("gallery.html.j2")
        .render(
            title="Explained predictions",
            lead=valid_text([lead])[0],
            groups=groups,
            notes=valid_text(notes),
            orders=[],
            whole_groups=True,
        )
    )
    (folder / "report.html").write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


def _most_often(found: Explanations) -> str:
    """Say what was predicted most often, where one thing was predicted more than once."""
    counts = Counter(item.predicted for item in found.items).most_common(_NAMED)
    if not counts or counts[0][1] < 2:
        return ""
    return ", most often " + ", ".join(f"{name} ({count})" for name, count in counts)


def _group(folder: Path, item: Explanation, training: Cache | None) -> dict[str, Any]:
    facts = [("predicted", item.predicted)]
    if item.probability is not None:
        facts.append(("probability", f"{item.probability:.1%}"))
    if item.score is not None:
        facts.append(("score", f"{item.score:.4g}"))
    image = _uri("jpeg", item.thumbnail) if item.thumbnail else None
    pictures = [_picture(image, "the image", facts, f"{item.key} {item.predicted}", asked=True)]
    if item.picture:
        overlay = _uri("png", (folder / item.picture).read_bytes())
        pictures.append(_picture(overlay, Path(item.picture).name, [("", "map")], item.key, asked=True))
    for near in item.neighbours:
        assert training is not None
        own = thumbnail(image_bytes(training, near.row), _SIDE, 75)
        near_facts = [("", near.label), ("cosine", f"{near.cosine:.4f}")]
        pictures.append(_picture(own, near.key, near_facts, f"{near.key} {near.label}"))
    return {"title": valid_text([item.key])[0], "pictures": pictures}


def _picture(
    image: str | None, name: str, facts: list[tuple[str, str]], text: str, *, asked: bool = False
) -> dict[str, Any]:
    return {
        "image": image,
        "key": valid_text([name])[0],
        "facts": [(what, valid_text([value])[0]) for what, value in facts],
        "text": valid_text([text])[0].lower(),
        "sort": {},
        "asked": asked,
    }


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
