from __future__ import annotations

import io
import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipeline.cache import open_cache
from pipeline.errors import HeadError
from pipeline.labelling.app import FILES, make_app
from pipeline.labelling.guard import MOST_BODY, new_token
from pipeline.labelling.journal import LabelError
from pipeline.labelling.server import address_of, host_names, listen
from pipeline.labelling.session import open_session
from pipeline.labelling.thumbnails import Thumbnails
from tests.labelling.sample import make_digits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.labelling.session import Session

TOKEN = "a-token-of-a-test"
HOST = "127.0.0.1:8000"
COUNT = 60


@pytest.fixture(scope="module")
def cache_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("app"), COUNT)


@pytest.fixture
def session(cache_path: Path, tmp_path: Path) -> Iterator[Session]:
    with open_session(open_cache(cache_path), tmp_path / "labels.csv") as found:
        yield found


def client_of(session: Session, tmp_path: Path, make_run: Any = None, words: Any = None) -> TestClient:
    thumbnails = Thumbnails(session.cache, tmp_path / "thumbnails.sqlite")
    hosts = [HOST, "localhost:8000"]
    app = make_app(session, thumbnails, token=TOKEN, hosts=hosts, make_run=make_run, words=words)
    return TestClient(app, base_url=f"http://{HOST}/{TOKEN}", raise_server_exceptions=False)


@pytest.fixture
def client(session: Session, tmp_path: Path) -> Iterator[TestClient]:
    with client_of(session, tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def shared(cache_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Return a client for requests that change nothing."""
    folder = tmp_path_factory.mktemp("shared")
    with open_session(open_cache(cache_path), folder / "labels.csv") as session, client_of(session, folder) as found:
        yield found


def act(client: TestClient, seen: int, **action: Any) -> Any:
    return client.post("/act", json={"action": action, "seen": seen, "page": "p"})


def test_the_page_and_all_its_parts_are_served_with_a_policy(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["referrer-policy"] == "no-referrer"
    assert {"index.html", "main.js", "label.css"} <= FILES.keys()
    for name in FILES:
        assert client.get(f"/static/{name}").status_code == 200
        assert b"http://" not in client.get(f"/static/{name}").content.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https://" not in client.get(f"/static/{name}").content


def test_labels_go_from_the_page_to_the_table(client: TestClient, session: Session) -> None:
    first, second, third = np.flatnonzero(~session.held_back)[:3].tolist()
    state = act(client, 0, do="label", rows=[first, second], value="<b>cat</b>").json()
    assert state["actions"] == 1
    assert state["classes"][0]["name"] == "<b>cat</b>"
    state = act(client, 1, do="label", rows=[third], value="dog").json()
    assert state["fitted"]
    captions = client.post("/captions", json={"rows": [first, third, session.order[0].item()]}).json()["captions"]
    assert [caption[0] for caption in captions] == ["<b>cat</b>", "dog", None]
    deadline = time.monotonic() + 20
    while b"dog" not in session.path.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert session.path.read_text().splitlines()[:2] == ["key,label", f"{session.keys[first]},<b>cat</b>"]
    assert len(client.get("/colours").content) == COUNT
    assert len(np.frombuffer(client.get("/map").content, "<f4")) == 2 * COUNT


def test_pictures_are_jpegs_of_the_right_image(client: TestClient, session: Session) -> None:
    for address, size in (("/thumb/7", 8), ("/image/7", 8)):
        answer = client.get(address)
        assert answer.headers["content-type"] == "image/jpeg"
        image = Image.open(io.BytesIO(answer.content))
        assert image.size == (size, size)
        assert (
            np.abs(np.asarray(image.convert("L"), float).ravel() - session.cache.embeddings[7] * 255 / 16).mean() < 12
        )
    assert client.get(f"/thumb/{COUNT}").status_code == 400
    item = client.get("/item/7").json()
    assert item["key"] == "0007.png"


def test_an_image_that_is_gone_is_not_found(tmp_path: Path) -> None:
    path = make_digits(tmp_path / "gone", 12)
    with open_session(open_cache(path), tmp_path / "l.csv") as session, client_of(session, tmp_path) as client:
        (tmp_path / "gone" / "images" / "0003.png").unlink()
        (tmp_path / "gone" / "images" / "0004.png").write_bytes(b"no image")
        assert [client.get(f"/thumb/{n}").status_code for n in (2, 3, 4)] == [200, 404, 404]


def test_two_pages_are_noticed_and_the_one_behind_is_refused(client: TestClient) -> None:
    client.get("/state?page=one")
    assert client.get("/state?page=two").json()["pages"] == 2
    assert act(client, 0, do="label", rows=[0], value="cat").status_code == 200
    refused = act(client, 0, do="label", rows=[1], value="dog")
    assert refused.status_code == 409
    assert "another page" in refused.json()["error"]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1:8001"},
        {"host": "127.0.0.1"},
        {"host": "127.0.0.1:8000.evil.example"},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:8001"},
        {"origin": "https://127.0.0.1:8000"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_requests_from_elsewhere_are_refused(shared: TestClient, headers: dict[str, str]) -> None:
    body = {"action": {"do": "label", "rows": [0], "value": "x"}, "seen": 0}
    for path in ("/", "/state", "/thumb/1", "/static/main.js"):
        assert shared.get(path, headers=headers).status_code == 403
    assert shared.post("/act", json=body, headers=headers).status_code == 403
    assert shared.get("/state").json()["actions"] == 0


def test_own_origins_and_names_pass(client: TestClient) -> None:
    for headers in ({"origin": f"http://{HOST}"}, {"host": "LOCALHOST:8000"}, {"sec-fetch-site": "same-origin"}):
        assert client.get("/state", headers=headers).status_code == 200


@pytest.mark.parametrize("token", ["", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "%00", "é"])
def test_no_path_answers_without_the_token(shared: TestClient, token: str) -> None:
    for path in ("", "/", "/state", "/thumb/1", "/act", "/static/main.js"):
        assert shared.get(f"http://{HOST}/{token}{path}").status_code == 403
        assert shared.post(f"http://{HOST}/{token}{path}", json={}).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/%2e%2e/errors.py", "/static//etc/passwd",
        "/static/%2fetc%2fpasswd", "/static/main.js%00", "/static/", "/thumb/../../etc/passwd", "/thumb/-1",
        "/thumb/99999999999999999999", "/image/%2e%2e", "/item/..%2f..", "/view/__class__", "/view/groups?of=-1",
        "/view/groups?of=%c2%b2", "/view/..%2fstate", "/etc/passwd", "/labels.csv", "/../labels.csv",
    ],
)  # fmt: skip
def test_nothing_outside_the_items_is_served(shared: TestClient, path: str) -> None:
    answer = shared.get(f"http://{HOST}/{TOKEN}{path}")
    assert answer.status_code in (400, 403, 404)
    assert len(answer.content) < 300


def test_bodies_that_are_no_action_are_refused(client: TestClient, session: Session) -> None:
    action = {"do": "label", "rows": [0], "value": "x"}
    for body in (
        {},
        {"action": action},
        {"action": action, "seen": "0"},
        {"action": action, "seen": True},
        {"action": "undo", "seen": 0},
        {"action": {"do": "labels", "values": {"../x": "y"}}, "seen": 0},
        {"action": {"do": "label", "keys": ["0000.png"], "value": "x"}, "seen": 0},
        {"action": {"do": "label", "rows": [COUNT], "value": "x"}, "seen": 0},
        {"action": {"do": {}, "rows": [0], "value": "x"}, "seen": 0},
    ):
        assert client.post("/act", json=body).status_code == 400, body
    plain = client.post(
        "/act", content=json.dumps({"action": action, "seen": 0}), headers={"content-type": "text/plain"}
    )
    assert plain.status_code == 400
    assert client.post("/act", content=b"{", headers={"content-type": "application/json"}).status_code == 400
    assert client.post("/act", content=b"[]", headers={"content-type": "application/json"}).status_code == 400
    large = client.post("/act", content=b" " * (MOST_BODY + 1), headers={"content-type": "application/json"})
    assert large.status_code == 403
    assert client.get("/act").status_code == 405
    assert session.labels.actions == 0


def test_the_button_makes_a_run_and_shows_what_it_says(session: Session, tmp_path: Path) -> None:
    calls: list[Path] = []

    def make(tell: Any) -> Path:
        tell("one\ntwo")
        calls.append(tmp_path / "run")
        if len(calls) > 1:
            raise HeadError("one class only")
        return calls[0]

    with client_of(session, tmp_path, make) as client:
        assert client.get("/run").json()["possible"]
        for expected in ("done", "failed"):
            assert client.post("/run", json={}).status_code == 200
            deadline = time.monotonic() + 20
            while client.get("/run").json()["state"] == "working" and time.monotonic() < deadline:
                time.sleep(0.01)
            status = client.get("/run").json()
            assert status["state"] == expected
            assert status["lines"] == ["one", "two"]
    assert status["error"] == "one class only"


def test_tokens_are_long_and_never_the_same() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert min(map(len, tokens)) >= 32


def test_the_server_listens_at_loopback_and_knows_its_names() -> None:
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        assert sock.getsockname()[0] == "127.0.0.1"
        assert address_of(sock, "127.0.0.1", "t") == f"http://127.0.0.1:{port}/t/"
        assert set(host_names(sock, "127.0.0.1")) == {f"{n}:{port}" for n in ("127.0.0.1", "localhost", "[::1]")}
        assert host_names(sock, "box.example") == [f"box.example:{port}"]
        with pytest.raises(LabelError, match="--port"):
            listen("127.0.0.1", port)
    for host in ("0.0.0.0", "::"):
        with pytest.raises(LabelError, match="address of this machine"):
            listen(host, 0)
