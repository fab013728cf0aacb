"""The pages and answers of the server, for one session."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from pipeline.core.names import one_line
from pipeline.errors import PipelineError
from pipeline.labelling.guard import Guard
from pipeline.labelling.journal import LabelError
from pipeline.labelling.session import StaleError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from starlette.requests import Request

    from pipeline.labelling.session import Session
    from pipeline.labelling.thumbnails import Thumbnails
    from pipeline.labelling.words import Words

    MakeRun = Callable[[Callable[[str], None]], Path]
    """Fits an ordinary head on the saved labels, calls its argument with messages, returns the run folder."""

STATIC = Path(__file__).parent / "static"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
FILES = {path.name: path for path in sorted(STATIC.iterdir()) if path.suffix in _TYPES}
"""What the page consists of, by name: no path is made of what a request says."""
_FROM_PAGES = ("label", "add", "drop", "class", "rename", "undo", "redo")
_SAVE_SECONDS = 0.5
_IMAGES_KEPT = {"cache-control": "private, max-age=86400, immutable"}
_NOT_KEPT = {"cache-control": "no-store"}


class Saver:
    """Writes the table of labels soon after the last of several actions, in a thread of its own.

    Attributes
    ----------
    problem : str or None
        Why the last attempt failed.
    """

    def __init__(self, session: Session) -> None:
        self.problem: str | None = None
        self._session = session
        self._wanted, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def want(self) -> None:
        """Ask for the table to be written."""
        self._wanted.set()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._wanted.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            self._wanted.wait()
            if self._ended.wait(_SAVE_SECONDS):
                return
            self._wanted.clear()
            try:
                self._session.save()
                self.problem = None
            except PipelineError as error:
                self.problem = one_line(str(error))


class Runs:
    """The button that turns labels into a run: one at a time, in a thread of its own."""

    def __init__(self, make: MakeRun | None) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._status: dict[str, Any] = {"state": "none", "lines": []}

    @property
    def status(self) -> dict[str, Any]:
        """What the page shows of the run."""
        with self._lock:
            return {**self._status, "lines": self._status["lines"][-20:], "possible": self._make is not None}

    def start(self) -> None:
        """Begin.

        Raises
        ------
        LabelError
            One is being made already, or none can be made.
        """
        with self._lock:
            if self._make is None or self._status["state"] == "working":
                raise LabelError(
                    "a run is being made already: wait for it" if self._make else "no run can be made here"
                )
            self._status = {"state": "working", "lines": []}
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        assert self._make is not None
        try:
            run = self._make(lambda text: self._status["lines"].extend(text.splitlines()))
            ended = {"state": "done", "run": str(run)}
        except PipelineError as error:
            ended = {"state": "failed", "error": one_line(str(error))}
        with self._lock:
            self._status = {**self._status, **ended}


class Pages:
    """Answers requests about one session."""

    def __init__(self, session: Session, thumbnails: Thumbnails, make_run: MakeRun | None, words: Words | None) -> None:
        self.session, self.thumbnails, self.words = session, thumbnails, words
        self.saver, self.runs = Saver(session), Runs(make_run)

    def routes(self) -> list[Route]:
        """Return which request is answered by what."""
        return [
            Route("/", self.index),
            Route("/static/{name}", self.static),
            Route("/state", self.state),
            Route("/colours", self.colours),
            Route("/map", self.map),
            Route("/view/{name}", self.view),
            Route("/words", self.search),
            Route("/captions", self.captions, methods=["POST"]),
            Route("/item/{n:int}", self.item),
            Route("/thumb/{n:int}", self.thumb),
            Route("/image/{n:int}", self.image),
            Route("/act", self.act, methods=["POST"]),
            Route("/run", self.run),
            Route("/run", self.start_run, methods=["POST"]),
        ]

    def close(self) -> None:
        """End the threads and close the file of pictures."""
        self.saver.close()
        self.thumbnails.close()

    def index(self, request: Request) -> Response:
        """Return the page."""
        return _file("index.html")

    def static(self, request: Request) -> Response:
        """Return a part of the page."""
        return _file(request.path_params["name"])

    def state(self, request: Request) -> Response:
        """Return what the page shows beside the images."""
        return self._state(request.query_params.get("page", ""))

    def _state(self, page: str) -> Response:
        found = self.session.state(page[:40])
        return _json({**found, "problem": self.saver.problem, "words": self.words is not None})

    def colours(self, request: Request) -> Response:
        """Return the class of every image, a byte each."""
        return Response(self.session.colours(), media_type="application/octet-stream", headers=_NOT_KEPT)

    def map(self, request: Request) -> Response:
        """Return the place of every image on the map."""
        return Response(self.session.places(), media_type="application/octet-stream", headers=_NOT_KEPT)

    def view(self, request: Request) -> Response:
        """Return the images to show."""
        of = request.query_params.get("of", "0")
        if not of.isascii() or not of.isdigit() or len(of) > 12:
            raise LabelError("expected a number in the address: reload the page")
        return _json(self.session.view(request.path_params["name"], of=int(of)))

    def search(self, request: Request) -> Response:
        """Return the images that are nearest to words."""
        if self.words is None:
            raise LabelError("words can be searched in caches of dual encoders only, such as CLIP's: reload the page")
        return _json(self.session.view_words(request.query_params.get("text", ""), self.words))

    async def captions(self, request: Request) -> Response:
        """Return the labels and guesses of some images."""
        asked = await _body(request)
        rows = self.session.checked_rows(asked.get("rows"))
        return _json({"captions": await run_in_threadpool(self.session.captions, rows)})

    def item(self, request: Request) -> Response:
        """Return key and columns of an image."""
        return _json(self.session.item(request.path_params["n"]))

    def thumb(self, request: Request) -> Response:
        """Return a small picture."""
        return self._picture(request, self.thumbnails.small)

    def image(self, request: Request) -> Response:
        """Return a large picture."""
        return self._picture(request, self.thumbnails.large)

    def _picture(self, request: Request, make: Callable[[int], bytes | None]) -> Response:
        n = self.session.checked_rows([request.path_params["n"]])[0]
        made = make(int(self.session.features.rows[n]))
        if made is None:
            return Response(status_code=404, headers=_NOT_KEPT)
        return Response(made, media_type="image/jpeg", headers=_IMAGES_KEPT)

    async def act(self, request: Request) -> Response:
        """Do an action."""
        asked = await _body(request)
        entry, seen = asked.get("action"), asked.get("seen")
        if not isinstance(entry, dict) or type(seen) is not int or entry.get("do") not in _FROM_PAGES:
            raise LabelError("expected an action, found something else: reload the page")
        entry = {name: value for name, value in entry.items() if name != "keys"}
        return await run_in_threadpool(self._act, entry, seen, str(asked.get("page", "")))

    def _act(self, entry: dict[str, Any], seen: int, page: str) -> Response:
        self.session.act(entry, seen=seen)
        self.saver.want()
        return self._state(page)

    def run(self, request: Request) -> Response:
        """Return what is known of the run."""
        return _json(self.runs.status)

    async def start_run(self, request: Request) -> Response:
        """Begin a run on the labels so far."""
        await _body(request)
        await run_in_threadpool(self.session.save)
        self.runs.start()
        return _json(self.runs.status)


def make_app(
    session: Session,
    thumbnails: Thumbnails,
    *,
    token: str,
    hosts: Iterable[str],
    make_run: MakeRun | None = None,
    words: Words | None = None,
) -> Guard:
    """Return the application of a session, behind its checks.

    Parameters
    ----------
    session : Session
        What is labelled.
    thumbnails : Thumbnails
        Its pictures.
    token : str
        The first part of every path.
    hosts : iterable of str
        Values of the Host header that name the server.
    make_run : callable, optional
        What the button *Make a run* calls.
    words : Words, optional
        Searches by words; None where no words can be searched.
    """
    pages = Pages(session, thumbnails, make_run, words)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        yield
        pages.close()

    errors: Any = {PipelineError: _refused}
    app = Starlette(routes=pages.routes(), exception_handlers=errors, lifespan=lifespan)
    return Guard(app, token, frozenset(host.lower() for host in hosts))


def _refused(request: Request, error: Exception) -> Response:
    status = 409 if isinstance(error, StaleError) else 400
    return JSONResponse({"error": one_line(str(error))}, status, dict(_NOT_KEPT))


def _file(name: str) -> Response:
    path = FILES.get(name)
    if path is None:
        return PlainTextResponse("there is no such file", 404)
    return Response(path.read_bytes(), media_type=_TYPES[path.suffix], headers=_NOT_KEPT)


def _json(value: dict[str, Any]) -> Response:
    return JSONResponse(value, headers=dict(_NOT_KEPT))


async def _body(request: Request) -> dict[str, Any]:
    """Return the JSON object of a request; forms, which other sites can send unasked, are refused."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise LabelError("expected JSON, found something else: reload the page")
    try:
        found = json.loads(await request.body())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise LabelError("expected a JSON object, found something else: reload the page")
    return found
