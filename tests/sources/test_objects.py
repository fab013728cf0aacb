"""Objects of S3 and Azure are read with the settings of fsspec's client, or by that client."""

from __future__ import annotations

import datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import fsspec
import pytest

from pipeline.core.items import Changed
from pipeline.sources import clients, objects
from pipeline.sources.objects import FAILURES, Objects, objects_of
from pipeline.sources.store import RemoteStore
from scripts.source_variants import s3_server

if TYPE_CHECKING:
    from collections.abc import Iterator

obstore = pytest.importorskip("obstore")
ODD_KEYS = ["plain", "a b", "a%20b", "a+b", "é/ü", "a#b?c=d", "a//b", "x/../y", "~(')!*"]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Return the URL of a bucket whose objects hold their own names."""
    with s3_server() as url:
        files = fsspec.filesystem("s3")
        for key in ODD_KEYS:
            files.pipe_file(f"{url}/{key}", f"bytes of {key}".encode())
        yield url


@pytest.fixture
def not_by_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*args: object) -> None:
        raise AssertionError(args)

    monkeypatch.setitem(clients._READS, "s3", refuse)


@pytest.mark.parametrize("key", ODD_KEYS)
@pytest.mark.parametrize("listed", [True, False])
def test_every_key_gives_its_own_bytes(key: str, listed: bool, bucket: str) -> None:
    store = RemoteStore(bucket)
    path = f"{bucket.removeprefix('s3://')}/{key}"
    file = store.look(path) if listed else clients.Wanted(path)
    right = f"bytes of {key}".encode()
    if listed:
        assert store.read_all(file) == right  # type: ignore[arg-type]
        assert store.read(file, 2, 5) == right[2:7]  # type: ignore[arg-type]
    else:
        assert clients.fetch(store._fs, "s3", file, 20.0).data == right  # type: ignore[arg-type]


@pytest.mark.usefixtures("not_by_fsspec")
def test_a_plain_bucket_is_read_without_fsspec(bucket: str) -> None:
    store = RemoteStore(bucket)
    file = store.look(f"{bucket.removeprefix('s3://')}/plain")
    assert store.read_all(file) == b"bytes of plain"
    fsspec.filesystem("s3").pipe_file(f"{bucket}/plain", b"BYTES OF PLAIN")
    try:
        with pytest.raises(Changed):
            store.read(file, 0, 5)
        with pytest.raises(Changed):
            store.read_all(file)
    finally:
        fsspec.filesystem("s3").pipe_file(f"{bucket}/plain", b"bytes of plain")


def test_a_missing_object_is_an_error_of_fsspec(bucket: str) -> None:
    store = RemoteStore(bucket)
    path = f"{bucket.removeprefix('s3://')}/nothing"
    for _ in range(2 * FAILURES):
        with pytest.raises(FileNotFoundError):
            clients.fetch(store._fs, "s3", clients.Wanted(path), 20.0)
    name = bucket.removeprefix("s3://")
    assert objects_of(store._fs, "s3", name, 20.0).read("plain", "", 0, 5) is not None  # it is still tried


@pytest.mark.parametrize(
    "settings",
    [{"config_kwargs": {"max_pool_connections": 3}}, {"requester_pays": True}, {"client_kwargs": {"verify": 0}}],
)
def test_what_is_set_otherwise_is_left_to_fsspec(settings: dict[str, Any], bucket: str) -> None:
    files = fsspec.filesystem("s3", **settings)
    assert objects_of(files, "s3", bucket.removeprefix("s3://"), 20.0).read("plain", "", 0, 5) is None


def test_credentials_are_those_that_the_client_has_now(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr("obstore.store.S3Store", lambda bucket, **how: made.append(how))
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    objects_of(files, "s3", bucket.removeprefix("s3://"), 20.0)
    provider = made[0]["credential_provider"]
    before = provider()
    assert before["access_key_id"] == "nobody"
    assert before["expires_at"] - datetime.datetime.now(datetime.UTC) <= objects.CREDENTIALS_KEPT
    files.s3._request_signer._credentials.access_key = "renewed"
    assert provider()["access_key_id"] == "renewed"


@pytest.mark.parametrize(
    ("endpoint", "bucket", "expected"),
    [
        ("https://s3-fips.us-east-1.amazonaws.com", "box", ("https://box.s3-fips.us-east-1.amazonaws.com", True)),
        ("https://s3.us-east-1.amazonaws.com", "a.box", ("https://s3.us-east-1.amazonaws.com", False)),
        ("http://127.0.0.1:9000", "box", ("http://127.0.0.1:9000", False)),
        ("https://s3.us-east-1.amazonaws.com", "box--use1-az4--x-s3", None),
    ],
)
def test_requests_go_to_the_host_of_the_client(
    endpoint: str, bucket: str, expected: tuple[str, bool] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr("obstore.store.S3Store", lambda bucket, **how: made.append(how))
    client = {"endpoint_url": endpoint, "region_name": "us-east-1"}
    objects_of(fsspec.filesystem("s3", anon=True, client_kwargs=client, skip_instance_cache=True), "s3", bucket, 20.0)
    assert [(how["endpoint"], how["virtual_hosted_style_request"]) for how in made] == ([expected] if expected else [])


def test_azure_takes_the_key_of_the_client_and_leaves_tokens_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr("obstore.store.AzureStore", lambda container, **how: made.append(how))
    key = SimpleNamespace(account_name="me", account_key="a2V5")
    for credential in (key, None, SimpleNamespace(get_token=None)):
        client = SimpleNamespace(url="http://127.0.0.1:1/me/", credential=credential)
        objects_of(SimpleNamespace(service_client=client), "az", "box", 20.0)
    assert [(how["account_name"], how["account_key"], how["endpoint"]) for how in made] == [
        ("me", "a2V5", "http://127.0.0.1:1/me")
    ]


class Failing:
    """A store that raises."""

    def __init__(self, error: Exception) -> None:
        self.error, self.asked = error, 0

    def get(self, key: str, options: object) -> None:
        self.asked += 1
        raise self.error


def test_it_is_given_up_where_only_fsspec_reads() -> None:
    store = Failing(obstore.exceptions.GenericError("moved to another region"))
    found = Objects(store)
    for _ in range(2 * FAILURES):
        assert found.read("key", "", 0, 5) is None
        found.served_otherwise()
    assert store.asked == FAILURES


def test_a_store_that_hangs_is_not_asked_again_by_another_client() -> None:
    with pytest.raises(TimeoutError):
        Objects(Failing(obstore.exceptions.GenericError("operation timed out"))).read("key", "", 0, 5)
