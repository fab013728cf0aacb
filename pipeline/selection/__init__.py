"""Rows of a cache chosen by split, label or outcome, joined with tables, and given to other libraries."""

from __future__ import annotations

from pipeline.selection.selection import Selection, open_selection

__all__ = ["Selection", "open_selection"]
