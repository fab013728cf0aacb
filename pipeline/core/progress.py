"""Progress on the screen: a bar on a terminal and in a notebook, an occasional line in a log."""

from __future__ import annotations

import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.core.callbacks import Say

LOG_EVERY_S = 30.0


class ProgressLine:
    """A bar with rows/s and time left on a terminal or in a notebook, an occasional line in a log.

    Parameters
    ----------
    what : str
        Stands before the bar.
    unit : str
        What is counted.
    say : callable
        Takes the lines of a log.
    """

    def __init__(self, what: str, unit: str = "images", *, say: Say) -> None:
        self._what, self._unit, self._say = what, unit, say
        self._bar: Any = None
        self._first = (0, 0.0)
        self._logged = 0.0

    def __call__(self, ready: int, failed: int, total: int) -> None:
        """Show the state."""
        if self._bar is None:
            self._bar = _tqdm()(
                total=total,
                initial=ready,
                unit=f" {self._unit}",
                desc=self._what,
                disable=not (in_notebook() or sys.stderr.isatty()),
                dynamic_ncols=True,
                smoothing=0.1,
            )
            self._first, self._logged = (ready, time.monotonic()), time.monotonic()
            return
        if not self._bar.disable:
            self._bar.update(ready - self._bar.n)
            if failed:
                self._bar.set_postfix_str(f"{failed} failed", refresh=False)
        elif time.monotonic() - self._logged > LOG_EVERY_S:
            self._logged = time.monotonic()
            rate = (ready - self._first[0]) / max(self._logged - self._first[1], 1e-9)
            left = (total - ready) / max(rate, 1e-9)
            self._say(
                f"{self._what}: {ready} of {total} {self._unit}, {failed} failed, {rate:.0f} {self._unit}/s, "
                f"{left / 60:.0f} min left"
            )

    def close(self) -> None:
        """Restore the terminal."""
        if self._bar is not None:
            self._bar.close()


def show(text: str) -> None:
    """Show a line above the bar, if there is one."""
    # Notebooks put a red box around what goes to standard error.
    _tqdm().write(text, file=sys.stdout if in_notebook() else sys.stderr)


def in_notebook() -> bool:
    """Return whether this is the kernel of a notebook, whose output is no terminal and shows a bar all the same."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config


def _tqdm() -> Any:
    with warnings.catch_warnings():  # without ipywidgets there is a bar of text
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm  # only where something is shown

    return tqdm
