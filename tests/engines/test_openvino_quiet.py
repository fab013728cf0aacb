"""OpenVINO's usage reports are off."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("openvino")


def test_the_package_that_reports_is_never_imported() -> None:
    code = """
from pipeline.engines.openvino_quiet import ov
import sys
from openvino.tools.ovc import convert_impl, telemetry_utils
print(sorted(name for name, module in sys.modules.items() if "openvino_telemetry" in name and module is not None))
print({convert_impl.tm.__name__, telemetry_utils.tm.__name__})
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n{'openvino.tools.ovc.telemetry_stub'}\n"
