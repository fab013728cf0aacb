"""Write down every attempt of a Python process and its children to leave the machine, into the file ``ATTEMPTS``."""

import os
import sys


def _record(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        found = arguments[:2]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):  # a path is a socket of this machine
        found = arguments[1]
    else:
        return
    with open(os.environ["ATTEMPTS"], "a") as file:  # noqa: PTH123  # pathlib need not be loaded yet
        file.write(f"{event} {found}\n")


sys.addaudithook(_record)
