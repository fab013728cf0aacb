"""A model hub on the loopback interface, which answers the hub's client as the real one does.

Small files are sent at once. Large ones are a redirect to another host, as those in LFS are. A server may break off one
transfer, and may move a branch to another commit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pytest

LARGE = (".safetensors", ".bin", ".tar", ".zip", ".parquet", ".h5")


@dataclass
class Repo:
    """A repository: its commits, oldest first, and the branch that follows the newest."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False

    def commit(self, files: Path | Mapping[str, bytes]) -> str:
        """Add a commit of the files of a folder; return its name."""
        if isinstance(files, Path):
            files = {str(file.relative_to(files)): file.read_bytes() for file in files.rglob("*") if file.is_file()}
        digest = hashlib.sha1(
            json.dumps({name: hashlib.sha1(data).hexdigest() for name, data in files.items()}).encode()
        )
        digest.update(str(len(self.commits)).encode())
        self.commits[digest.hexdigest()] = dict(files)
        return digest.hexdigest()

    def resolve(self, revision: str) -> str | None:
        """Return the commit that a revision stands for."""
        if revision == "main":
            return list(self.commits)[-1]
        return revision if revision in self.commits else None


@dataclass
class Hub:
    """The hub's contents, and what it was asked."""

    repos: dict[str, Repo] = field(default_factory=dict)
    breaks_after: int | None = None
    """Bytes after which the next transfer of a large file breaks off."""
    keeps_breaking: bool = False
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path, and range of every request."""
    tokens: list[str] = field(default_factory=list)
    port: int = 0
    blobs: dict[str, bytes] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def downloads(self) -> list[str]:
        """Return the ranges of the transfers of large files."""
        return [asked_range for method, path, asked_range in self.asked if method == "GET" and path.startswith("/lfs/")]


class _Answers(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, self.headers.get("Range", "")))
        if "Authorization" in self.headers:
            self.hub.tokens.append(self.headers["Authorization"])
        parts = path.strip("/").split("/")
        if path == "/":
            self._send(200, b"")
        elif parts[0] == "lfs":
            self._send_large(self.hub.blobs[parts[1]])
        elif parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), parts[4:])
        elif len(parts) > 4 and parts[2] == "resolve":
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _found(self, name: str, revision: str) -> tuple[Repo, str] | None:
        repo = self.hub.repos.get(name)
        if repo is None:  # to those who are not logged in, a missing repository is like a private one
            self._send(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif repo.gated and "Authorization" not in self.headers:
            message = f"Access to model {name} is restricted. You must have access to it and be authenticated."
            self._send(401, message.encode(), {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
        elif (commit := repo.resolve(revision)) is None:
            message = f"Invalid rev id: {revision}"
            self._send(404, message.encode(), {"X-Error-Code": "RevisionNotFound", "X-Error-Message": message})
        else:
            return repo, commit
        return None

    def _resolve(self, name: str, revision: str, file: str) -> None:
        found = self._found(name, revision)
        if found is None:
            return
        repo, commit = found
        head = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        data = repo.commits[commit].get(file)
        if data is None:
            self._send(404, b"Entry not found", {**head, "X-Error-Code": "EntryNotFound"})
        elif file.endswith(LARGE):
            sha = hashlib.sha256(data).hexdigest()
            self.hub.blobs[sha] = data
            # Another host by name, which must not see a token.
            location = f"http://localhost:{self.hub.port}/lfs/{sha}"
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{sha}"', "Location": location}
            self._send(302, b"", {**head, **linked})
        else:
            self._send(200, data, {**head, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    def _describe(self, name: str, rest: list[str]) -> None:
        revision = rest[1] if len(rest) > 1 else "main"
        found = self._found(name, revision)
        if found is None:
            return
        repo, commit = found
        files = repo.commits[commit]
        if rest[:1] == ["tree"]:
            query = parse_qs(urlsplit(self.path).query)
            below = "".join(f"{part}/" for part in rest[2:])
            deep = query.get("recursive", ["False"])[0].lower() == "true"
            listed: Any = _tree(files, below, deep=deep)
            if below and not listed:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
        else:
            siblings = [{"rfilename": file} for file in files]
            listed = {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": [], "private": False}
        self._send(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})

    def _send_large(self, data: bytes) -> None:
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, total = int(first), len(data)
        data = data[: int(last) + 1] if last else data
        head = {"Accept-Ranges": "bytes"}
        if start or last:
            head["Content-Range"] = f"bytes {start}-{len(data) - 1}/{total}"
        most = self.hub.breaks_after
        if not self.hub.keeps_breaking:
            self.hub.breaks_after = None
        self._send(206 if start or last else 200, data[start:], head, breaks_after=most)

    def _send(
        self, status: int, data: bytes, headers: Mapping[str, str] | None = None, breaks_after: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data if breaks_after is None else data[:breaks_after])
        if breaks_after is not None and breaks_after < len(data):
            self.wfile.flush()
            self.close_connection = True


def _tree(files: Mapping[str, bytes], below: str, *, deep: bool) -> list[dict[str, Any]]:
    """Return the files and folders of a folder, with all that is below it or not."""
    found, folders = [], set[str]()
    for file, data in files.items():
        if not file.startswith(below):
            continue
        inside = file[len(below) :].split("/")
        folders.update(below + "/".join(inside[:n]) for n in range(1, len(inside) if deep else min(len(inside), 2)))
        if deep or len(inside) == 1:
            found.append(_listed(file, data))
    return [{"type": "directory", "path": path, "size": 0, "oid": ""} for path in sorted(folders)] + found


def _listed(file: str, data: bytes) -> dict[str, Any]:
    about: dict[str, Any] = {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if file.endswith(LARGE):
        sha = hashlib.sha256(data).hexdigest()
        about["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 130}
    return about


@contextlib.contextmanager
def hub_server(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[Hub]:
    """Run a hub, and have the client of this process use it, with a cache folder of its own."""
    import huggingface_hub.hf_api
    from huggingface_hub import constants
    from huggingface_hub.utils._http import close_session

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"hub": hub}))
    server.daemon_threads = True
    hub.port = int(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    # What HF_ENDPOINT and HF_HOME set when the client is imported, which was before.
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    close_session()
    try:
        yield hub
    finally:
        close_session()
        server.shutdown()
        server.server_close()
        thread.join()
