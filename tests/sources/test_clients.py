"""Requests of the stores' clients end in the time that an attempt has."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from fsspec.asyn import get_loop
from fsspec.config import conf

from pipeline.sources.clients import SILENCE_S, info_of, settings_of
from pipeline.sources.retries import may_pass


def test_a_question_that_is_not_answered_ends_and_may_be_asked_again() -> None:
    """As of a client that waits and repeats by itself."""
    ended = []

    async def info(path: str) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(path)

    files = SimpleNamespace(async_impl=True, loop=get_loop(), _info=info)
    with pytest.raises(TimeoutError) as caught:
        info_of(files, "az", "box/a.png", 0.01)
    assert may_pass(caught.value)
    assert ended == ["box/a.png"]


def test_a_listing_has_limits_where_clients_would_wait_for_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = settings_of("https")["client_kwargs"]["timeout"]
    assert (limit.total, limit.sock_connect, limit.sock_read) == (None, SILENCE_S, SILENCE_S)
    assert settings_of("gs") == {"requests_timeout": SILENCE_S}
    assert settings_of("s3") == {}
    monkeypatch.setitem(conf, "gs", {"requests_timeout": 5, "project": "p"})
    monkeypatch.setitem(conf, "https", {"client_kwargs": {"timeout": 7, "trust_env": True}})
    assert settings_of("gs") == {}  # what the user has set
    assert settings_of("https") == {"client_kwargs": {"timeout": 7, "trust_env": True}}
