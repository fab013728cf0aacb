"""The same images as every kind of source, for measuring and testing."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

Images = dict[str, bytes]
"""Bytes by name, such as ``cat/001.png``."""


def read_folder(folder: Path, count: int | None = None) -> Images:
    """Return ``count`` images of a folder, spread over it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    chosen = files if count is None else [files[i] for i in np.linspace(0, len(files) - 1, count).astype(int)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in chosen}


def label_of(name: str) -> str:
    return name.partition("/")[0]


def make_folder(folder: Path, images: Images) -> None:
    for name, data in images.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def add_to_tar(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def make_tars(folder: Path, images: Images, shards: int) -> None:
    """Write ``shard-0.tar`` and on, each with a run of the images."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(images)
    for shard, part in enumerate(np.array_split(np.arange(len(names)), shards)):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as archive:
            for i in part:
                add_to_tar(archive, names[i], images[names[i]])


def make_webdataset(path: Path, images: Images) -> None:
    """Write numbered samples, an image and a ``.cls`` each."""
    with tarfile.open(path, "w") as archive:
        for number, (name, data) in enumerate(images.items()):
            add_to_tar(archive, f"{number:06d}.cls", label_of(name).encode())
            add_to_tar(archive, f"{number:06d}{Path(name).suffix}", data)


def make_zip(path: Path, images: Images, *, deflated: bool) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        for name, data in images.items():
            archive.writestr(name, data)


def make_parquet(path: Path, images: Images, *, hugging_face: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = [label_of(name) for name in images]
    column = (
        pa.array([{"bytes": data, "path": name} for name, data in images.items()])
        if hugging_face
        else pa.array(list(images.values()), pa.binary())
    )
    pq.write_table(pa.table({"image": column, "label": labels}), path, row_group_size=max(1, len(images) // 4))


def make_encoded_hdf5(path: Path, images: Images) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("images", len(images), dtype=h5py.vlen_dtype(np.uint8))
        for row, data in enumerate(images.values()):
            dataset[row] = np.frombuffer(data, np.uint8)
        file["labels"] = [label_of(name).encode() for name in images]


def make_pixel_hdf5(path: Path, images: Images) -> None:
    """Write the pixels, which all have to be of one shape."""
    import h5py
    from PIL import Image

    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in images.values()])
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=pixels, chunks=(1, *pixels.shape[1:]), compression="gzip")
        file["labels"] = [label_of(name).encode() for name in images]


def make_files(folder: Path, images: Images) -> dict[str, str]:
    """Write all kinds of one machine below ``folder``; return what to call each, by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    make_folder(folder / "folder", images)
    make_tars(folder / "tars", images, 4)
    make_webdataset(folder / "samples.tar", images)
    make_zip(folder / "stored.zip", images, deflated=False)
    make_zip(folder / "deflated.zip", images, deflated=True)
    make_parquet(folder / "hf.parquet", images, hugging_face=True)
    make_parquet(folder / "plain.parquet", images, hugging_face=False)
    make_encoded_hdf5(folder / "encoded.h5", images)
    (folder / "list.csv").write_text(
        "path,label\n" + "".join(f"folder/{name},{label_of(name)}\n" for name in images), encoding="utf-8"
    )
    return {
        "folder": str(folder / "folder"),
        "table": str(folder / "list.csv"),
        "glob": str(folder / "folder" / "**" / "*.*"),
        "tar shards": str(folder / "tars" / "shard-{0..3}.tar"),
        "WebDataset": str(folder / "samples.tar"),
        "zip, stored": str(folder / "stored.zip"),
        "zip, deflated": str(folder / "deflated.zip"),
        "Parquet, Hugging Face": str(folder / "hf.parquet"),
        "Parquet, binary": str(folder / "plain.parquet"),
        "HDF5, encoded": str(folder / "encoded.h5"),
    }


def copy_to(root: str, folder: Path) -> dict[str, str]:
    """Copy what `make_files` made to an fsspec URL; return what to call each, by kind."""
    import fsspec

    filesystem, _ = fsspec.core.url_to_fs(root)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            filesystem.pipe_file(f"{root}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    scheme = root.partition("://")[0]
    return {
        f"{scheme} folder": f"{root}/folder",
        f"{scheme} tar shards": f"{root}/tars/shard-*.tar",
        f"{scheme} zip": f"{root}/deflated.zip",
        f"{scheme} Parquet": f"{root}/hf.parquet",
    }


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's S3 server in this process, with a bucket, and point everybody at it; yields the bucket's URL."""
    import boto3
    from fsspec import get_filesystem_class
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request otherwise
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    ours = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    get_filesystem_class("s3").clear_instance_cache()  # a kept client knows an earlier server
    bucket = f"images-{port}"  # as with real ones, what is known of one is true of no other
    try:
        boto3.client("s3").create_bucket(Bucket=bucket)
        yield f"s3://{bucket}"
    finally:
        server.stop()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
