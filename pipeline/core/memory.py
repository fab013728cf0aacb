"""Errors that mean a lack of memory: each library has its own for it."""

from __future__ import annotations

import errno

NO_MEMORY = (
    "expected more memory than this process may use: raise its limit (ulimit -v, the job's), or use fewer --workers "
    "and a smaller --batch-size"
)
_SIGNS = (
    "cannot allocate memory",
    "can't allocate memory",
    "unable to allocate",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "failed to map segment",
    "can't start new thread",
    "unable to create thread",
    "resource temporarily unavailable",
)
"""What the errors of libraries say, in lower case: of C++ containers, of the dynamic linker, of threads."""


def lacks_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that it came from, says that memory or the right to more threads is lacking.

    Examples
    --------
    >>> lacks_memory(ImportError("libx.so: failed to map segment from shared object")), lacks_memory(KeyError("x"))
    (True, False)
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if isinstance(error, (RuntimeError, OSError, ImportError, SystemError, ValueError)):
            text = str(error).lower()
            if any(sign in text for sign in _SIGNS):
                return True
        error = error.__cause__ or error.__context__
    return False
