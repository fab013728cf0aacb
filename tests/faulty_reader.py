"""A reader whose locators say what goes wrong; at the top of tests/ so that decode workers can import it."""

from __future__ import annotations

import io
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int) -> bytes:
    """Return a PNG whose grey value is the number."""
    file = io.BytesIO()
    Image.fromarray(np.full((40, 40, 3), number % 256, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True, slots=True)
class FaultyReader:
    """Reads a picture of the number in the locator, or does what the locator says.

    Parameters
    ----------
    log : str
        File that gets a line for every attempt.
    """

    log: str

    def __call__(self, locator: str) -> bytes:
        what, _, number = locator.partition(" ")
        with Path(self.log).open("a") as log:
            log.write(locator + "\n")
        if what == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif what == "abort":
            os.abort()
        elif what == "exit":
            os._exit(7)
        elif what == "hang":
            while True:
                sum(range(100_000))
        elif what == "sleep":
            time.sleep(3600)
        elif what == "memory":
            return bytes(1 << 36)
        elif what == "raise":
            raise ValueError("a reader of its own mind")
        elif what == "slow":
            time.sleep(0.05)
            with Path(self.log).open("a") as log:
                log.write(f"read {number}\n")
        return picture(int(number or 0))
