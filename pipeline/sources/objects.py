"""Reads of S3 and Azure by obstore, with the settings and credentials that fsspec's client has found.

A read takes a tenth of the processor time there. fsspec's client stays the authority: it lists, it serves whatever is
set in a way that is not passed on here, and it repeats each read that failed here, so that errors are its own.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import threading
from typing import TYPE_CHECKING, Any

from pipeline.core.items import Changed

if TYPE_CHECKING:
    from collections.abc import Callable

CREDENTIALS_KEPT = datetime.timedelta(minutes=5)
"""After which fsspec's client is asked for them again; it renews them in time."""
FAILURES = 3
"""Reads in a row that fail here and not by fsspec's client, after which this is not tried again."""
PLAIN_SETTINGS = {"endpoint_url", "region_name", "aws_access_key_id", "aws_secret_access_key", "aws_session_token"}
EXPRESS = "--x-s3"
"""Ends the names of directory buckets, whose requests are signed otherwise."""
_TIMED_OUT = ("timed out", "timeout")
_KEPT = "_pipeline_objects"
_opening = threading.Lock()


class Objects:
    """The objects of one bucket or container.

    Parameters
    ----------
    store : obstore store, or None
        None where fsspec's client has to read.
    """

    def __init__(self, store: Any) -> None:
        self._store, self._failures = store, 0

    def read(self, key: str, version: str, offset: int, size: int) -> tuple[bytes, str, int] | None:
        """Return bytes, version and size of the object; None where it failed, and is to be read otherwise.

        Raises
        ------
        Changed
            It is of another version now.
        TimeoutError
            After the time of the store's own settings.
        """
        if self._store is None or self._failures >= FAILURES:
            return None
        from obstore.exceptions import BaseError, PreconditionError  # an extra

        asked: dict[str, Any] = {"if_match": f'"{version}"'} if version else {}
        if size >= 0:
            asked["range"] = (offset, offset + size)
        try:
            answer = self._store.get(key, options=asked)
            data = bytes(answer.bytes())
        except PreconditionError:
            raise Changed from None
        except (BaseError, ValueError) as error:
            if any(word in str(error).lower() for word in _TIMED_OUT):
                raise TimeoutError("the store did not answer in time") from None
            return None
        self._failures = 0
        return data, (answer.meta.get("e_tag") or "").strip('"'), answer.meta["size"]

    def served_otherwise(self) -> None:
        """Count a read that failed here, and that fsspec's client could serve."""
        self._failures += 1


def is_plain(key: str) -> bool:
    """Return whether obstore takes a key as it is: it has no parts that are empty or only dots.

    Examples
    --------
    >>> is_plain("a/b.jpg"), is_plain("a//b"), is_plain("a/../b")
    (True, False, False)
    """
    return not {"", ".", ".."} & set(key.split("/"))


def objects_of(fs: Any, protocol: str, bucket: str, timeout: float) -> Objects:
    """Return the objects of a bucket of fsspec's file system; kept with it, as new credentials come with a new one."""
    kept: dict[tuple[str, float], Objects] = fs.__dict__.setdefault(_KEPT, {})
    with _opening:  # many threads read, and share the connections
        found = kept.get((bucket, timeout))
        if found is None:
            store = None
            if importlib.util.find_spec("obstore") is not None:
                with contextlib.suppress(Exception):  # fsspec's client will say what is wrong
                    store = _STORES[protocol](fs, bucket, _how(timeout))
            found = kept[bucket, timeout] = Objects(store)
    return found


def _how(timeout: float) -> dict[str, Any]:
    limit = datetime.timedelta(seconds=timeout)
    return {
        "client_options": {"allow_http": True, "timeout": limit, "connect_timeout": limit},
        "retry_config": {"max_retries": 0},
    }


def _s3(fs: Any, bucket: str, how: dict[str, Any]) -> Any:
    from fsspec.asyn import sync
    from obstore.store import S3Store

    if not (set(fs.client_kwargs) <= PLAIN_SETTINGS) or fs.config_kwargs or fs.s3_additional_kwargs or fs.req_kw:
        return None
    if ":" in bucket or bucket.endswith(EXPRESS):
        return None
    client = sync(fs.loop, fs.set_session)
    style = (client.meta.config.s3 or {}).get("addressing_style")
    endpoint, region = client.meta.endpoint_url, client.meta.region_name
    virtual = style == "virtual" or (style != "path" and endpoint.endswith(".amazonaws.com") and "." not in bucket)
    place = {
        "endpoint": endpoint.replace("://", f"://{bucket}.", 1) if virtual else endpoint,
        "region": "us-east-1" if region == "aws-global" else region,
        "virtual_hosted_style_request": virtual,
    }
    if fs.anon:
        return S3Store(bucket, **place, skip_signature=True, **how)

    def credentials() -> Any:
        found = sync(fs.loop, client._request_signer._credentials.get_frozen_credentials)
        return {
            "access_key_id": found.access_key,
            "secret_access_key": found.secret_key,
            "token": found.token,
            "expires_at": datetime.datetime.now(datetime.UTC) + CREDENTIALS_KEPT,
        }

    return S3Store(bucket, **place, credential_provider=credentials, **how)


def _azure(fs: Any, container: str, how: dict[str, Any]) -> Any:
    from obstore.store import AzureStore

    client = fs.service_client
    key = getattr(client.credential, "account_key", None)
    if key is None:  # tokens stay with their own client, which renews them
        return None
    name = client.credential.account_name
    return AzureStore(container, account_name=name, account_key=key, endpoint=client.url.rstrip("/"), **how)


_STORES: dict[str, Callable[[Any, str, dict[str, Any]], Any]] = {
    **dict.fromkeys(("s3", "s3a"), _s3),
    **dict.fromkeys(("az", "abfs", "abfss"), _azure),
}
OBJECT_STORES = frozenset(_STORES)
"""Protocols of these stores."""
