"""URLs, and what of them may be shown."""

from __future__ import annotations

import re


def is_url(location: str) -> bool:
    """Tell a URL from a path."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", location) is not None


def public(location: str) -> str:
    """Return a text with what URLs in it may carry of credentials cut out: user and password, query, signature.

    Examples
    --------
    >>> public("https://me:secret@host/a.tar?X-Amz-Signature=0123#part")
    'https://host/a.tar#part'
    >>> public("photos/what?.jpg")
    'photos/what?.jpg'
    """
    bare = re.sub(r"(://)[^/\s'\"]*@", r"\1", location)  # a password may hold an @ of its own
    # A text that begins as a URL is one: there, spaces and quotes do not end the query, nor keep it from being found.
    bare = re.sub(r"\A([a-zA-Z][a-zA-Z0-9+.-]*://[^?#]*)\?[^#]*", r"\1", bare)
    return re.sub(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"?#]*)\?[^\s'\"#)]*", r"\1", bare)
