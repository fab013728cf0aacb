"""OpenVINO without its usage reports, which must be switched off before it is imported.

Its package ``openvino_telemetry`` writes an identifier of the user into the home folder, and sends a report of every
conversion. Where the package is missing, OpenVINO uses a stand-in of its own that does nothing.
"""

from __future__ import annotations

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: importing it is an ImportError

import openvino as ov  # noqa: E402  # see above

__all__ = ["ov"]
