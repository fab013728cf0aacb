"""The server: its socket, its address, and its end."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from typing import TYPE_CHECKING, Any

from pipeline.core.optional import optional_part
from pipeline.labelling.journal import LabelError

if TYPE_CHECKING:
    from collections.abc import Callable

_WAITING = 128
_EVERYWHERE = ("0.0.0.0", "::", "")
_NAMES_OF_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def check_extra() -> None:
    """Refuse to start without the libraries of the extra.

    Raises
    ------
    LabelError
        One is missing.
    """
    way_out = "pip install 'embedding-pipeline[label]'"
    with optional_part("pipeline label needs starlette", way_out, LabelError):
        import starlette  # noqa: F401  # an extra
    with optional_part("pipeline label needs uvicorn", way_out, LabelError):
        import uvicorn  # noqa: F401  # as above


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Parameters
    ----------
    host : str
        An address of this machine.
    port : int
        0 for one that is free.

    Raises
    ------
    LabelError
        There is no such address, or the port is taken.
    """
    if host in _EVERYWHERE:
        raise LabelError(
            f"expected an address of this machine for --host, found {host}, which is all of them: name the one that "
            "other machines use, since requests to other names are refused"
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as stack:
            found = stack.enter_context(socket.socket(family, kind, protocol))
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen(_WAITING)
            stack.pop_all()
    except OSError as error:
        raise LabelError(
            f"cannot listen at {host}:{port} ({error.strerror or error}): choose another --port or --host"
        ) from None
    return found


def address_of(sock: socket.socket, host: str, token: str) -> str:
    """Return the address of the page."""
    return f"http://{_bracketed(host)}:{sock.getsockname()[1]}/{token}/"


def host_names(sock: socket.socket, host: str) -> list[str]:
    """Return the values of the Host header that name the server: the name it was started with, or those of loopback."""
    port = sock.getsockname()[1]
    names = {_bracketed(host)}
    if is_loopback(host):
        names |= set(_NAMES_OF_LOOPBACK)
    return [f"{name}:{port}" for name in sorted(names)] + (sorted(names) if port == 80 else [])


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def serve(app: Any, sock: socket.socket, started: Callable[[], None]) -> None:
    """Answer requests until a signal ends the process or `KeyboardInterrupt` is raised.

    Parameters
    ----------
    app : ASGI application
        What answers.
    sock : socket
        From `listen`.
    started : callable
        Called when the first request would be answered.
    """
    import uvicorn  # an extra

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # the addresses hold the token
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=2,
        timeout_keep_alive=30,
    )
    Server(config).run(sockets=[sock])
