"""Results as one self-contained HTML page."""

from __future__ import annotations

from pipeline.report.page import write_report, write_summary

__all__ = ["write_report", "write_summary"]
