from __future__ import annotations

import json
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from pipeline.errors import HeadError
from pipeline.evaluation.pooling import Pooling
from pipeline.heads import LoadedHead, load_head, save_head
from pipeline.heads.columns import CategoryColumn, ColumnEncoder, NumberColumn
from pipeline.heads.model import HeadModel
from pipeline.heads.saved import _pooling

if TYPE_CHECKING:
    from pathlib import Path


def a_head(**changes: Any) -> LoadedHead:
    rng = np.random.default_rng(0)
    arrays = {"coef": rng.normal(size=(3, 4)), "intercept": rng.normal(size=3)}
    facts: dict[str, Any] = {
        "model": HeadModel("linear", arrays, "softmax", 3, temperature=1.5),
        "class_names": ("a", "ü", "\n"),
        "layer": "penultimate",
        "spec": {"backbone": "x", "preprocess": {"mean": [0.5]}},
        "fingerprint": "12ab",
        "head": "logistic",
    }
    return LoadedHead(**facts | changes)


def test_a_saved_head_comes_back_whole(tmp_path: Path) -> None:
    head = a_head()
    save_head(tmp_path / "head.safetensors", head)
    for path in (tmp_path, tmp_path / "head.safetensors"):
        loaded = load_head(path)
        X = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
        np.testing.assert_array_equal(loaded.predict_proba(X), head.predict_proba(X))
        assert loaded.predict_proba(X).sum(axis=1) == pytest.approx(1.0)
        assert (loaded.class_names, loaded.spec, loaded.fingerprint) == (head.class_names, head.spec, head.fingerprint)
    # The safetensors library reads the same arrays: the format is no dialect.
    assert load_file(tmp_path / "head.safetensors").keys() == {"coef", "intercept"}


def test_a_head_on_several_layers_names_them(tmp_path: Path) -> None:
    head = a_head(layer="a:avg + penultimate", layers=("a:avg", "penultimate"))
    save_head(tmp_path / "head.safetensors", head)
    loaded = load_head(tmp_path)
    assert (loaded.layer, loaded.layers) == ("a:avg + penultimate", ("a:avg", "penultimate"))
    X = np.random.default_rng(1).normal(size=(5, 4))
    features = loaded.features({"penultimate": X[:, 3:], "other": X, "a:avg": X[:, :3]})
    np.testing.assert_array_equal(loaded.predict_proba(features), head.predict_proba(X))
    with pytest.raises(HeadError, match=r"the layers a:avg \+ penultimate, side by side"):
        loaded.predict_proba(X[:, :3])


def test_earlier_versions_refuse_only_heads_on_several_layers(tmp_path: Path) -> None:
    for layers, version in ((("penultimate",), 1), (("a", "b"), 2)):
        save_head(tmp_path / "head", a_head(layer=" + ".join(layers), layers=layers))
        text = (tmp_path / "head").read_bytes()
        assert b'\\"format_version\\": %d' % version in text
        assert (b"layers" in text) == (version == 2)


def test_a_head_with_columns_comes_back_whole_and_earlier_versions_refuse_it(tmp_path: Path) -> None:
    site = CategoryColumn("site", ("a", "b"), False)
    head = a_head(columns=ColumnEncoder((NumberColumn("age", 40.0, 10.0, False), site)))
    save_head(tmp_path / "head.safetensors", head)
    assert b'\\"format_version\\": 3' in (tmp_path / "head.safetensors").read_bytes()
    loaded = load_head(tmp_path)
    assert loaded.columns == head.columns
    columns = {"site": np.array(["b", "c"]), "age": np.array(["30", ""])}
    features = loaded.features({"penultimate": np.ones((2, 1))}, columns)
    assert features.tolist() == [[1, -1, 0, 1], [1, 0, 0, 0]]
    assert loaded.predict(features).shape == (2,)
    with pytest.raises(HeadError, match=r"finetune: expected a head on embeddings alone, found one with .* age, site"):
        loaded.check_embeddings_alone("finetune")


def test_the_same_head_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_head(tmp_path / name, a_head())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_loading_needs_neither_torch_nor_scikit_learn(tmp_path: Path) -> None:
    save_head(tmp_path / "head.safetensors", a_head())
    code = (
        "import sys, numpy as np; from pipeline.heads import load_head; h = load_head(sys.argv[1]); "
        "h.predict_proba(np.ones((2, 4), np.float32)); sys.exit(bool({'torch', 'sklearn', 'h5py'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0


def test_other_embeddings_are_refused() -> None:
    head = a_head()
    with pytest.raises(HeadError, match=r"shape \(n, 4\), found \(2, 5\)"):
        head.predict_proba(np.ones((2, 5)))
    with pytest.raises(HeadError, match="fingerprint"):
        head.check_fingerprint("77")


def file_of(arrays: dict[str, Any], **changes: Any) -> bytes:
    facts = {
        "format": "embedding-pipeline head", "format_version": 1,
        "kind": "linear", "link": "softmax", "temperature": 1.0,
        "head": "logistic", "task": "classification", "layer": "penultimate", "class_names": ["a", "b"],
        "fingerprint": "f", "spec": {},
    } | changes  # fmt: skip
    return bytes(save(arrays, metadata={"head": json.dumps(facts)}))


GOOD = {"coef": np.ones((2, 3)), "intercept": np.ones(2)}


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("code of the file was run",))


def raw(header: str, body: bytes = b"") -> bytes:
    data = header.encode()
    return len(data).to_bytes(8, "little") + data + body


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "header"),
    "pickle": (pickle.dumps(Bomb()), "header"),
    "giant header": ((1 << 60).to_bytes(8, "little") + b"{}", "header would be larger"),
    "header is a list": (raw("[]"), "no header"),
    "deep header": (raw("[" * 100_000), "expected a head"),
    "no metadata": (bytes(save(GOOD)), "expected a head"),
    "another model's file": (bytes(save(GOOD, metadata={"head": "{}"})), "no head"),
    "doubled key": (raw('{"__metadata__":{"head":"{}"},"__metadata__":{"head":"{}"}}'), "occurs twice"),
    "wide columns": (
        file_of(
            GOOD,
            format_version=3,
            columns=[{"kind": "category", "name": "s", "levels": ["a", "b", "c"], "gaps": False}],
        ),
        "fewer than 3 encoded columns, found 3",
    ),
    "networks": (file_of(GOOD, format_version=4, more=[{"layers": []}]), "layers, spec and fingerprint of each"),
    "future": (file_of(GOOD, format_version=9), "version 1 or 2 or 3 or 4, found 9"),
    "layers that are no names": (file_of(GOOD, layers=[1]), "layers as a list of names"),
    "a layer twice": (file_of(GOOD, layer="a + a", layers=["a", "a"]), "each once"),
    "other layers": (file_of(GOOD, layers=["a", "b"]), "layers of 'penultimate'"),
    "wrong shape": (file_of(GOOD | {"intercept": np.ones(3)}), r"intercept of shape \(2,\)"),
    "wrong count of names": (file_of(GOOD, class_names=["a"]), "coef of shape"),
    "a name twice": (file_of(GOOD, class_names=["a", "a"]), "twice"),
    "an array too many": (file_of(GOOD | {"more": np.ones(1)}), "expected arrays coef, intercept"),
    "an array too few": (file_of({"coef": np.ones((2, 3))}), "expected arrays"),
    "not finite": (file_of(GOOD | {"intercept": np.array([0, np.nan])}), "not finite"),
    "half precision": (file_of(GOOD | {"intercept": np.ones(2, np.float16)}), "type 'F16'"),
    "scalar": (file_of(GOOD | {"coef": np.ones(())}), "no width|expected a head"),
    "no temperature": (file_of(GOOD, temperature=0), "temperature"),
    "unknown kind": (file_of(GOOD, kind="tree"), "unknown kind"),
    "truncated": (file_of(GOOD)[:-1], "damaged"),
    "trailing": (file_of(GOOD) + b"x", "damaged"),
    "overlapping": (
        raw(
            '{"__metadata__":{"head":"{}"},"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},'
            '"b":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}',
            bytes(8),
        ),
        "does not lie",
    ),
    "shape of astronomic size": (
        raw('{"__metadata__":{"head":"{}"},"a":{"dtype":"F64","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'),
        "does not lie",
    ),
    "a link of another task": (file_of(GOOD, link="sigmoid"), "link 'sigmoid' does not fit the task 'classification'"),
    "labels that exclude each other": (file_of(GOOD, task="multilabel"), "link 'softmax' does not fit"),
    "an unknown task": (file_of(GOOD, task="ranking", link="identity"), "does not fit the task 'ranking'"),
    "a task that is no text": (file_of(GOOD, task=["regression"]), "expected task as text"),
    "a link that is no text": (file_of(GOOD, link={"a": 1}), "does not fit|expected a head"),
    "an estimator as kind": (file_of(GOOD, kind="estimator"), "unknown kind"),
    "shares without neighbours": (file_of(GOOD, link="shares"), "a linear head has no link 'shares'"),
    "two columns of numbers": (file_of(GOOD, task="regression", link="identity"), "one column of numbers, found 2"),
    "numbers that are not finite": (
        file_of(
            {"coef": np.full((1, 3), np.inf), "intercept": np.ones(1)},
            task="regression",
            link="identity",
            class_names=["age"],
        ),
        "not finite",
    ),
    "a regression by neighbours": (
        file_of(
            {"neighbours": np.ones((2, 3)), "classes": np.array([0, 0]), "n_neighbors": np.array([1])},
            kind="knn",
            task="regression",
            link="identity",
            class_names=["age"],
        ),
        "a knn head has no link 'identity'",
    ),
    "a neighbour of no class": (
        file_of(
            {"neighbours": np.ones((2, 3)), "classes": np.array([0, 9]), "n_neighbors": np.array([1])},
            kind="knn",
            link="shares",
        ),
        "none of the class names",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_in_one_clear_line(tmp_path: Path, name: str) -> None:
    data, message = HOSTILE[name]
    file = tmp_path / "head.safetensors"
    file.write_bytes(data)
    with pytest.raises(HeadError, match=message) as caught:
        load_head(tmp_path)
    assert "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_never_escapes_as_anything_else(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    data = bytearray(file_of(GOOD))
    data[at % len(data)] ^= 1 << bit
    file = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    file.write_bytes(data)
    try:
        head = load_head(file)
    except HeadError:
        return
    assert head.model.predict_proba(np.ones((2, head.width))).shape == (2, 2)


def test_heads_of_numbers_and_label_sets_come_back(tmp_path: Path) -> None:
    X = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    coef = np.random.default_rng(0).normal(size=(2, 4))
    arrays = {"coef": coef, "intercept": np.zeros(2)}
    labels = a_head(
        model=HeadModel("linear", arrays, "sigmoid", 2, temperature=2.0), class_names=("a", "b"), task="multilabel"
    )
    save_head(tmp_path / "head.safetensors", labels)
    loaded = load_head(tmp_path)
    np.testing.assert_allclose(loaded.predict_proba(X), 1 / (1 + np.exp(-X @ coef.T / 2)))
    np.testing.assert_array_equal(loaded.predict(X), X @ coef.T >= 0)
    arrays = {"coef": coef[:1], "intercept": np.full(1, 7.0)}
    number = a_head(model=HeadModel("linear", arrays, "identity", 1), class_names=("age",), task="regression")
    save_head(tmp_path / "head.safetensors", number)
    loaded = load_head(tmp_path)
    np.testing.assert_allclose(loaded.predict(X), X @ coef[:1].T + 7)
    with pytest.raises(HeadError, match="predicts numbers"):
        loaded.predict_proba(X)


def test_a_joblib_file_is_opened_only_on_trust(tmp_path: Path) -> None:
    (tmp_path / "head.joblib").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(HeadError, match="--trust"):
        load_head(tmp_path)


@pytest.mark.parametrize(
    "pooling",
    [
        3,
        {"per": "p", "how": "mean"},
        {"per": "p", "how": "median", "temperature": 1.0},
        {"per": 1, "how": "mean", "temperature": 1.0},
        {"per": "p", "how": "max", "temperature": 0},
        {"per": "p", "how": "max", "temperature": True},
    ],
)
def test_a_pooling_that_is_none_is_refused(pooling: Any) -> None:
    assert _pooling({"pooling": {"per": "p", "how": "max", "temperature": 2}}) == Pooling("p", "max", 2.0)
    assert _pooling({}) is None
    with pytest.raises(HeadError, match=r"pooling|temperature"):
        _pooling({"pooling": pooling})
