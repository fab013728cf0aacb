"""Reads that a store could not serve now: told from those that it will never serve, and repeated within limits.

The clients of the stores raise errors of their own kinds. What they have in common is read here: the number of an
operating system's error, the status of an HTTP answer, the name of the class.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import math
import random
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.core.items import Changed, OutOfReach

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipeline.core.items import Reader

RETRIES = 5
READ_TIMEOUT = 45.0
"""Seconds for an image with all its repetitions; below the time limit of an image, which would end its worker."""
ATTEMPTS_SHARE = 1 / 3
"""Of these seconds, for one attempt: a connection that hangs leaves time for others."""
LEAST_ATTEMPT = 1
"""Seconds for an attempt that begins when the time is nearly over."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds; each wait is twice as long as the one before."""

_PASSING_ERRORS = {
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.EPIPE,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ENETDOWN,
    errno.EAGAIN,
    errno.EBUSY,
}
_PASSING_STATUSES = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}
_PASSING_CLASSES = (
    "ClientConnectionError",  # aiohttp; also ServerDisconnectedError, ClientConnectorError, …
    "ClientPayloadError",
    "ConnectionClosedError",  # botocore
    "EndpointConnectionError",
    "ReadTimeoutError",
    "ConnectTimeoutError",
    "IncompleteReadError",
    "ResponseStreamingError",
    "IncompleteRead",  # http.client
    "ProtocolError",  # urllib3
    "ServiceRequestError",  # azure
    "ServiceResponseError",
    "FSTimeoutError",
    "FlexibleChecksumError",  # botocore: other bytes than were sent
    "ChecksumError",  # gcsfs
    "ResponseParserError",  # botocore: an answer that is cut off
    "JSONDecodeError",  # the same of other stores
)
"""Names, so that no client has to be imported to ask."""
_PASSING_CODES = (
    "SlowDown",
    "RequestTimeout",
    "InternalError",
    "ServiceUnavailable",
    "Throttling",
    "RequestTimeTooSkewed",
)
_EXPIRED_CODES = (
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "TokenRefreshRequired",
    "AuthenticationFailed",
    "400",  # S3 to a question that is answered without a body, which would hold the word
)

_Result = TypeVar("_Result")
_ends: contextvars.ContextVar[float | None] = contextvars.ContextVar("ends", default=None)
"""When the attempt that is being made is given up, by the monotonic clock; None outside of attempts."""


def attempt_left() -> int:
    """Return the seconds after which a client gives up, so that all requests of an attempt end in its time.

    They are whole, since clients are kept by their time-out.
    """
    ends = _ends.get()
    left = READ_TIMEOUT if ends is None else ends - time.monotonic()
    return max(math.ceil(left), LEAST_ATTEMPT)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try.

    Attributes
    ----------
    retries : int
        How often a read is repeated that failed for a reason that may pass.
    timeout : float
        Seconds for all attempts; a third of them at most for one.
    """

    retries: int = RETRIES
    timeout: float = READ_TIMEOUT

    def waits(self) -> Iterator[float]:
        """Yield seconds to wait before each repetition: growing, and jittered, so that not all workers ask at once."""
        for n in range(self.retries):
            yield min(FIRST_WAIT * 2**n, LONGEST_WAIT) * random.uniform(0.5, 1.0)

    def call(self, attempt: Callable[[], _Result]) -> _Result:
        """Return the result of an attempt, repeated while it fails for a reason that may pass.

        Raises
        ------
        OutOfReach
            It failed so until the end.
        Exception
            Any other error of the attempt, at once.
        """
        waits, started, tried, left = self.waits(), time.monotonic(), 0, self.timeout
        while True:
            token = _ends.set(time.monotonic() + min(self.timeout * ATTEMPTS_SHARE, max(left, LEAST_ATTEMPT)))
            try:
                tried += 1
                return attempt()
            except Exception as error:
                if not may_pass(error):
                    raise
                wait = next(waits, None)
                left = self.timeout - (time.monotonic() - started) - (wait or 0.0)
                if wait is None or left < 0:
                    raise OutOfReach(errno.EAGAIN, f"{_reason(error)} (tried {tried} times)") from None
            finally:
                _ends.reset(token)
            time.sleep(wait)


@dataclass(frozen=True, slots=True)
class PatientReader:
    """A reader whose reads are repeated; picklable where the reader is.

    Parameters
    ----------
    reader : Reader
    patience : Patience
    """

    reader: Reader
    patience: Patience

    def __call__(self, locator: Any) -> bytes:
        """Return the bytes; raises `OutOfReach` where the store does not deliver them now, else `OSError`."""
        return self.patience.call(lambda: self.reader(locator))

    def span(self, locator: Any) -> tuple[int, int, int] | None:
        """Return the reader's span; None where it reads nothing together."""
        find = getattr(self.reader, "span", None)
        span: tuple[int, int, int] | None = find(locator) if find is not None else None
        return span

    def read_together(self, locators: Sequence[Any]) -> list[bytes | Exception]:
        """Return the bytes of each, or its own error."""
        reader: Any = self.reader
        try:
            found = self.patience.call(lambda: reader.read_together(locators))
        except (Changed, OutOfReach) as error:
            return [error] * len(locators)
        except OSError:  # of whichever member: each is read for itself
            return [self._attempt(locator) for locator in locators]
        return [
            self._attempt(locator) if isinstance(one, Exception) and may_pass(one) else one
            for locator, one in zip(locators, found, strict=True)
        ]

    def _attempt(self, locator: Any) -> bytes | Exception:
        try:
            return self(locator)
        except Exception as error:  # passed on to the one who takes it
            return error


def may_pass(error: BaseException) -> bool:
    """Return whether an error is one that another attempt may not meet: time-outs, full servers, lost connections.

    Examples
    --------
    >>> may_pass(TimeoutError()), may_pass(FileNotFoundError())
    (True, False)
    """
    for one in _chain(error):
        if isinstance(one, (FileNotFoundError, PermissionError)):
            return False
        status = _status(one)
        if status is not None:
            return status in _PASSING_STATUSES
        if _code(one) in _PASSING_CODES:
            return True
        if isinstance(one, (TimeoutError, asyncio.TimeoutError, ConnectionError)):
            return True
        if isinstance(one, OSError) and one.errno in _PASSING_ERRORS:
            return True
        if any(kind.__name__ in _PASSING_CLASSES for kind in type(one).__mro__):
            return True
    return False


def has_expired(error: BaseException) -> bool:
    """Return whether an error says that the credentials were right once, and are no more."""
    return any(_code(one) in _EXPIRED_CODES or _status(one) == HTTPStatus.UNAUTHORIZED for one in _chain(error))


def has_status(error: BaseException, status: int) -> bool:
    """Return whether an error holds this HTTP status."""
    return any(_status(one) == status for one in _chain(error))


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__)[:150]


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that a client's error holds; None where it holds none."""
    answer: Any = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore
        answer = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return answer if isinstance(answer, int) else None
    for holder, name in ((error, "status"), (error, "status_code"), (error, "code"), (answer, "status_code")):
        found = getattr(holder, name, None)
        if isinstance(found, int) and 400 <= found < 600:
            return found
    return None


def _code(error: BaseException) -> str:
    """Return the word by which a store names its error."""
    answer: Any = getattr(error, "response", None)
    if isinstance(answer, dict):
        return str(answer.get("Error", {}).get("Code", ""))
    word = getattr(error, "error_code", "") or ""
    return str(getattr(word, "value", word))  # Azure's are enumerations
