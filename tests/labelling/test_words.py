"""Search by words with a made-up network: what is found, what is loaded when, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.cache import open_cache
from pipeline.embedding.text import may_read_texts_of
from pipeline.errors import BackboneError
from pipeline.labelling.journal import LabelError
from pipeline.labelling.session import open_session
from pipeline.labelling.words import LONGEST_TEXT, Words
from tests.labelling.sample import make_digits, pixels
from tests.labelling.test_app import client_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

COUNT = 40


class Reader:
    """A text half that reads the number of an image, and gives that image's embedding."""

    def __init__(self) -> None:
        self.loaded = 0

    def load(self) -> Any:
        self.loaded += 1
        return self.embed

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return pixels(COUNT)[[int(text) for text in texts]].astype(np.float32)


def test_the_page_finds_images_by_words_and_loads_the_network_once(tmp_path: Path) -> None:
    reader, cache = Reader(), open_cache(make_digits(tmp_path / "d", COUNT))
    words = Words(cache, "penultimate", reader.load)
    with open_session(cache, tmp_path / "l.csv") as session, client_of(session, tmp_path, words=words) as client:
        assert client.get("/state").json()["words"]
        assert reader.loaded == 0
        left = np.flatnonzero(session.left)
        labelled, wanted = left[:2].tolist()
        session.act({"do": "label", "rows": [labelled], "value": "cat"}, seen=0)
        found = client.get("/words", params={"text": str(labelled)}).json()
        x = pixels(COUNT)
        cosine = x @ x[labelled] / np.linalg.norm(x, axis=1)
        assert found["rows"] == [n for n in np.argsort(-cosine, kind="stable").tolist() if session.left[n]]
        assert found["name"] == "words"
        assert client.get("/words", params={"text": f" {wanted} "}).json()["rows"][0] == wanted
        assert reader.loaded == 1


@pytest.mark.parametrize("text", ["", " \n ", "x" * (LONGEST_TEXT + 1)])
def test_no_words_and_very_many_are_refused(text: str, tmp_path: Path) -> None:
    reader, cache = Reader(), open_cache(make_digits(tmp_path / "d", COUNT))
    with pytest.raises(LabelError, match="characters to search for"):
        Words(cache, "penultimate", reader.load).nearest(text, np.arange(COUNT), 5)
    assert reader.loaded == 0


def test_a_network_that_cannot_be_loaded_is_one_line_and_is_tried_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def load() -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise BackboneError("no text tower")
        return Reader().embed

    cache = open_cache(make_digits(tmp_path / "d", COUNT))
    words = Words(cache, "penultimate", load)
    with open_session(cache, tmp_path / "l.csv") as session, client_of(session, tmp_path, words=words) as client:
        refused = client.get("/words", params={"text": "1"})
        assert (refused.status_code, refused.json()) == (400, {"error": "no text tower"})
        assert client.get("/words", params={"text": "1"}).status_code == 200


def test_a_cache_of_another_network_has_no_search_by_words(tmp_path: Path) -> None:
    cache = open_cache(make_digits(tmp_path / "d", COUNT))
    with open_session(cache, tmp_path / "l.csv") as session, client_of(session, tmp_path) as client:
        assert not client.get("/state").json()["words"]
        refused = client.get("/words", params={"text": "1"})
        assert refused.status_code == 400
        assert "dual encoders" in refused.json()["error"]


@pytest.mark.parametrize(
    ("backbone", "weights", "layer", "expected"),
    [
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "laion2b_s34b_b79k", "penultimate", True),
        ("transformers:lab/clip", "0123", "penultimate", True),
        ("transformers:lab/clip", "fine-tuned", "penultimate", False),
        ("transformers:lab/clip", "0123", "pooled", False),
        ("efficientnet_lite0", "efficientnet_lite0", "penultimate", False),
        ("another program's", "x", "penultimate", False),
    ],
)
def test_which_caches_may_read_words(backbone: str, weights: str, layer: str, expected: bool) -> None:
    assert may_read_texts_of({"backbone": backbone, "weights": {"name": weights}}, layer) is expected
