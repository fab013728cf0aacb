"""Requests of the stores' clients end in the time that an attempt has."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from fsspec.asyn import get_loop

from pipeline.sources.clients import info_of
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
