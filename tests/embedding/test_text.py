"""From images to answers in words, with a tiny random CLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import pipeline
from pipeline.analysis.search import search
from pipeline.cache import open_cache
from pipeline.embedding.text import text_tower_of_spec
from pipeline.errors import BackboneError, FingerprintError, HeadError
from tests.backbones import tiny
from tests.cli.run import run_command

pytest.importorskip("transformers")

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXTS = ("two dogs on grass", "an ant", "a bee")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Iterator[Path]:
    """A folder with a tiny CLIP and the cache that it made of the images."""
    home = tmp_path_factory.mktemp("texts")
    tiny.save(home / "clip", "clip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
        pipeline.extract(
            image_folder,
            home / "c.h5",
            backbone=f"transformers:{home / 'clip'}",
            engine="torch",
            workers=1,
            verbose=False,
        )
        yield home


def logits(home: Path, texts: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """Return the library's own logits (texts, rows) of the cache's embeddings."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(home / "clip").eval()
    with torch.inference_mode():
        words = model.get_text_features(
            **tiny.tokenizer()(list(texts), padding=True, return_tensors="pt")
        ).pooler_output
        words = words / words.norm(dim=1, keepdim=True)
        images = torch.from_numpy(np.array(open_cache(home / "c.h5").embeddings))
        images = images / images.norm(dim=1, keepdim=True)
        return np.asarray((model.logit_scale.exp() * words @ images.T).numpy())


def test_a_text_finds_the_images_with_the_largest_logit(home: Path) -> None:
    cache = open_cache(home / "c.h5")
    expected = logits(home, TEXTS)
    found = search(cache, [str(cache.keys[3])], texts=TEXTS, k=5)
    assert found.queries == (str(cache.keys[3]), *TEXTS)
    assert found.texts == 3
    assert found.query_rows.tolist() == [3, -1, -1, -1]
    for number, text in enumerate(TEXTS):
        rows = found.table[found.table["query"] == text]
        scale = text_tower_of_spec(cache.spec, "penultimate").scale
        np.testing.assert_allclose(scale * rows["cosine"], np.sort(expected[number])[::-1][:5], atol=2e-5)


def test_the_zero_shot_head_gives_the_librarys_probabilities(home: Path, image_folder: Path, tmp_path: Path) -> None:
    classes = ("ant", "bee", "cat")
    (tmp_path / "p.csv").write_text("class,prompt\n" + "".join(f"{name},a photo of {name}s\n" for name in classes))
    result = pipeline.fit_head(
        home / "c.h5", tmp_path / "run", head="zero-shot", prompts=str(tmp_path / "p.csv"), verbose=False
    )
    head = pipeline.load_head(tmp_path / "run")
    expected = logits(home, tuple(f"a photo of {name}s" for name in classes)).T
    cache = open_cache(home / "c.h5")
    np.testing.assert_allclose(head.model.scores(np.array(cache.embeddings)), expected, atol=1e-5)
    figure = result.metrics["test"]["accuracy"]
    assert figure["low"] <= figure["value"] <= figure["high"]
    predicted = pipeline.predict(tmp_path / "run", image_folder, engine="torch", workers=1, verbose=False).to_pandas()
    assert list(predicted["predicted"]) == [classes[k] for k in expected.argmax(axis=1)]


def test_a_logistic_head_starts_at_the_texts(home: Path, tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text("class\tprompt\nant\tan ant\nbee\ta bee\ncat\ta cat\n")
    options: dict[str, Any] = {"prompts": str(tmp_path / "p.tsv"), "start": "zero-shot", "C": [1e-9], "report": False}
    pipeline.fit_head(home / "c.h5", tmp_path / "run", shots=[2], verbose=False, **options)
    head = pipeline.load_head(tmp_path / "run")
    tower = text_tower_of_spec(open_cache(home / "c.h5").spec, "penultimate")
    words = tower.embed(["an ant", "a bee", "a cat"])
    cosine = (head.model.arrays["coef"] * words).sum(1) / np.linalg.norm(words, axis=1)
    np.testing.assert_allclose(cosine, np.linalg.norm(head.model.arrays["coef"], axis=1), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "zero-shot"}, "--prompts"),
        ({"prompts": "p.csv"}, "--head zero-shot or --start zero-shot"),
        ({"head": "ridge", "start": "zero-shot", "prompts": "p.csv"}, "for the logistic head"),
        ({"head": "zero-shot", "prompts": "p.csv"}, "cannot read p.csv"),
    ],
)
def test_prompts_and_heads_belong_together(options: dict[str, Any], message: str, home: Path, tmp_path: Path) -> None:
    with pytest.raises(HeadError, match=message):
        pipeline.fit_head(home / "c.h5", tmp_path / "run", verbose=False, **options)
    assert not (tmp_path / "run").exists()


def test_what_has_no_texts_is_named(home: Path) -> None:
    spec = dict(open_cache(home / "c.h5").spec)
    with pytest.raises(BackboneError, match="leave --layer out"):
        text_tower_of_spec(spec, "cls:avg")
    with pytest.raises(BackboneError, match="has no text tower: extract with a dual encoder"):
        text_tower_of_spec({**spec, "backbone": "efficientnet_lite0", "weights": {"name": "imagenet1k"}}, "penultimate")
    with pytest.raises(BackboneError, match="no longer fit"):
        text_tower_of_spec({**spec, "weights": {**spec["weights"], "name": "fine-tuned"}}, "penultimate")
    with pytest.raises(FingerprintError, match=r"beside weights\.sha256"):
        text_tower_of_spec({**spec, "weights": {**spec["weights"], "sha256": "0" * 64}}, "penultimate")


def test_the_command_searches_for_texts(home: Path, tmp_path: Path) -> None:
    page = tmp_path / "found.html"
    done = run_command("search", str(home / "c.h5"), "--text", TEXTS[0], "-k", "2", "--page", str(page))
    assert done.exit_code == 0, done.stderr
    assert [line.split(",")[:2] for line in done.stdout.splitlines()] == [
        ["query", "rank"], [TEXTS[0], "1"], [TEXTS[0], "2"],
    ]  # fmt: skip
    assert "1 query among 24 rows" in done.stderr
    assert TEXTS[0] in page.read_text(encoding="utf-8")
    assert "asked for" not in page.read_text(encoding="utf-8")
    nothing = run_command("search", str(home / "c.h5"))
    assert nothing.exit_code == 2
    assert "expected a QUERY or --text" in nothing.stderr


def test_the_page_of_labelling_finds_what_search_finds(home: Path) -> None:
    from pipeline.cli.label import _words

    cache = open_cache(home / "c.h5")
    words = _words(cache, {"layer": "penultimate", "weights": None, "trust_remote_code": False})
    assert words is not None
    rows = np.flatnonzero(np.asarray(cache.status) == 1)
    found = words.nearest(TEXTS[0], rows, 5)
    assert found.tolist() == search(cache, texts=TEXTS[:1], k=5).rows[0].tolist()
