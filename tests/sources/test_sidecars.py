"""Labels beside the images of an archive, held against WebDataset's own reader."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.errors import SourceError
from pipeline.sources import open_source
from tests.faulty_reader import picture
from tests.sources.test_archive import Members, keys, labels, left_out, own_indexes, write_tar, write_zip

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["own_indexes"]
both = pytest.mark.parametrize("write", [write_tar, write_zip])
PNG = picture(1)


def beside(contents: dict[str, bytes]) -> Members:
    """Return an image for each sidecar, and the sidecars."""
    members: Members = []
    for name, data in contents.items():
        members += [(f"{name.rpartition('.')[0]}.png", PNG), (name, data)]
    return members


def told(path: str) -> dict[str, str | None]:
    source = open_source(path)
    return dict(zip(keys(source), labels(source), strict=True))


@both
def test_names_with_dots_have_the_label_that_shares_most(write: Callable[[Path, Members], str], tmp_path: Path) -> None:
    members = [
        *beside({"img.v1.cls": b"cat", "img.v2.cls": b"dog", "a.b/1.cls": b"ant"}),
        ("7.left.png", PNG), ("7.right.PNG", PNG), ("7.cls", b"seven"),
        ("8.png", PNG), ("8.png.json", b'{"label": "eight"}'), ("9", PNG), ("9.CLS", b"nine"),
        ("5.x.y.png", PNG), ("5.x.cls", b"near"), ("5.cls", b"far"),
    ]  # fmt: skip
    assert told(write(tmp_path / "a", members)) == {
        "img.v1.png": "cat", "img.v2.png": "dog", "a.b/1.png": "ant", "7.left.png": "seven", "7.right.PNG": "seven",
        "8.png": "eight", "9": "nine", "5.x.y.png": "near",
    }  # fmt: skip


@both
@pytest.mark.parametrize(
    ("value", "label"),
    [
        (["cat", "dog"], "cat|dog"), ([], "|"), ([1, 2], "1|2"), (0.5, "0.5"), (7, "7"), (2**70, str(2**70)),
        (True, "True"), (None, None), (float("nan"), None), ("é", "é"),
    ],
)  # fmt: skip
def test_json_labels_of_every_kind(
    write: Callable[[Path, Members], str], value: Any, label: str | None, tmp_path: Path
) -> None:
    data = json.dumps({"label": value, "caption": "x" * 100_000}).encode()
    assert told(write(tmp_path / "a", beside({"1.json": data, "2.cls": b"other"}))) == {
        "1.png": label,
        "2.png": "other",
    }


@both
@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("1.json", b'{"label": {"id": 1}}', "label that cannot be read"),
        ("1.json", b'{"label": ["a", null]}', "label that cannot be read"),
        ("1.json", b'{"label": 1e400}', "label that cannot be read"),
        ("1.json", b'{"label": [NaN, 1]}', "label that cannot be read"),
        ("1.json", b'{"label": ["a", ""]}', "label that cannot be read"),
        ("1.json", b'{"label": "\xe9"}', "label that cannot be read"),
        ("1.json", b'{"label": "\\u0000"}', "label that cannot be read"),
        ("1.json", b'{"label": "' + b"x" * 257 + b'"}', "label above 256 characters"),
        ("1.cls", b"x" * 257, "label above 256 characters"),
        ("1.cls", b" \n", "label that cannot be read"),
        ("1.json", b'{"caption": "no label"}', "not an image"),
        ("1.json", b"[1]", "not an image"),
        ("0.cls", b"cat", "label of no image"),
    ],
)
def test_labels_that_are_not_kept_are_named(
    write: Callable[[Path, Members], str], name: str, data: bytes, reason: str, tmp_path: Path
) -> None:
    source = open_source(write(tmp_path / "a", [("1.png", PNG), (name, data)]))
    assert labels(source) == [None]
    assert left_out(source) == {name: reason}


def test_a_label_file_that_is_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("tar", "zip"):
        monkeypatch.setattr(f"pipeline.sources.{kind}.MAX_SIDECAR_BYTES", 100)
    for write in (write_tar, write_zip):
        members = [*beside({"1.cls": b"a", "2.json": bytes(300)}), ("annotations.json", bytes(300))]
        source = open_source(write(tmp_path / write.__name__, members))
        assert left_out(source) == {"2.json": "label file above 16 MB", "annotations.json": "not an image"}


@pytest.mark.parametrize("name", ["a|b", "a;b"])
def test_a_label_set_whose_names_hold_the_separator_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"1.json lists the name"):
        open_source(write_tar(tmp_path / "a", beside({"1.json": json.dumps({"label": [name]}).encode()})))


def test_class_names_of_other_encodings_stay_different(tmp_path: Path) -> None:
    names = ["p\xe2t\xe9", "p\xe2t\xe8", "œ"]
    contents = {f"{i}.cls": name.encode("cp1252") for i, name in enumerate(names)}
    contents |= {
        "3.cls": b"\x81",
        "4.cls": "ü".encode("utf-16"),
        "5.cls": "\ufeffü".encode(),
        "6.cls": "u\u0308".encode(),
    }
    assert list(told(write_tar(tmp_path / "a", beside(contents))).values()) == [*names, "\x81", "ü", "ü", "ü"]


def test_short_texts_are_labels_and_captions_are_not(tmp_path: Path) -> None:
    short = beside({"1.txt": b"cat\n", "2.txt": b"sea otter"})
    assert told(write_tar(tmp_path / "a.tar", short)) == {"1.png": "cat", "2.png": "sea otter"}
    assert left_out(open_source(str(tmp_path / "a.tar"))) == {}
    captions = beside({"3.txt": b"a cat that sits on a mat", "4.txt": b"x" * 5000})
    write_tar(tmp_path / "b.tar", [*captions, ("README.txt", b"short")])
    assert set(told(str(tmp_path / "b.tar")).values()) == {None}
    both = open_source(str(tmp_path / "[ab].tar"))  # what one archive shows holds for all
    assert set(labels(both)) == {None}
    assert set(left_out(both).values()) == {"text beside an image, not its label", "not an image"}


def test_an_image_with_the_name_of_a_label_is_an_image(tmp_path: Path) -> None:
    for write in (write_tar, write_zip):
        assert keys(open_source(write(tmp_path / write.__name__, [("1.cls", PNG), ("2.txt", PNG)]))) == [
            "1.cls",
            "2.txt",
        ]


def test_labels_are_those_that_webdataset_reads(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    from webdataset import tariterators, writer

    samples: list[dict[str, Any]] = [
        {"__key__": "a/0001", "png": PNG, "cls": 3},
        {"__key__": "a/0002", "png": PNG, "json": {"label": "cat"}},
        {"__key__": "b.c/0003", "png": PNG, "cls": 12},
        {"__key__": "b/0004", "png": PNG, "json": {"label": ["cat", "dog"]}},
        {"__key__": "0005", "left.png": PNG, "right.png": PNG, "cls": 0},
    ]
    with writer.TarWriter(str(tmp_path / "a.tar"), encoder=True) as out:
        for sample in samples:
            out.write({k: io.BytesIO(v).getvalue() if k.endswith("png") else v for k, v in sample.items()})
    with (tmp_path / "a.tar").open("rb") as stream:
        read = list(tariterators.group_by_keys(tariterators.tar_file_expander([{"url": "", "stream": stream}])))
    wanted = {}
    for sample in read:
        label = sample["cls"].decode() if "cls" in sample else json.loads(sample["json"])["label"]
        for field in (name for name in sample if name.endswith("png")):
            wanted[f"{sample['__key__']}.{field}"] = "|".join(label) if isinstance(label, list) else label
    assert told(str(tmp_path / "a.tar")) == wanted
