"""URLs, and the part of them that may be shown."""

from __future__ import annotations

import re


def is_url(location: str) -> bool:
    """Return whether a text is a URL rather than a path."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", location) is not None


def public(location: str) -> str:
    """Return a text without the credentials of URLs in it: user and password, query, signature.

    Examples
    --------
    >>> public("https://me:secret@host/a.tar?X-Amz-Signature=0123#part")
    'https://host/a.tar#part'
    >>> public("photos/what?.jpg")
    'photos/what?.jpg'
    """
    bare = re.sub(r"(://)[^/\s'\"]*@", r"\1", location)  # a password may hold an @ of its own
    # A text that begins like a URL is one URL: spaces and quotes do not end its query.
    bare = re.sub(r"\A([a-zA-Z][a-zA-Z0-9+.-]*://[^?#]*)\?[^#]*", r"\1", bare)
    return re.sub(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"?#]*)\?[^\s'\"#)]*", r"\1", bare)
