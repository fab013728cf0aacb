from __future__ import annotations

import pytest

from pipeline.embedding.bottleneck import ADVICE, find_bottleneck


@pytest.mark.parametrize(
    ("seconds", "limit"),
    [
        ({"wait for forward": 8, "wait for decode": 1, "decode": 15}, "network"),
        ({"wait for forward": 1, "wait for decode": 8, "decode": 19}, "decoding"),
        ({"wait for forward": 1, "wait for decode": 8, "decode": 5, "read": 14}, "storage"),
        ({"wait for forward": 3, "wait for decode": 3, "decode": 5}, "nothing in particular"),
        ({"wait for forward": 6, "wait for decode": 3, "write": 9}, "disk"),
    ],
)
def test_the_limit_is_what_the_loop_waits_for(seconds: dict[str, float], limit: str) -> None:
    found = find_bottleneck({"loop": 10.0, **seconds}, workers=2)
    assert found.limit == limit
    assert ADVICE[limit] in str(found)
    assert all(0 <= share <= 1 for share in found.shares.values())


def test_an_empty_run_has_a_read_out() -> None:
    assert find_bottleneck({}, workers=1).limit == "nothing in particular"
