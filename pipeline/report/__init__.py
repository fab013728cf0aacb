"""Results as pictures and as one self-contained HTML page."""

from __future__ import annotations

from pipeline.report.figures import save_confusion
from pipeline.report.page import write_report, write_summary

__all__ = ["save_confusion", "write_report", "write_summary"]
