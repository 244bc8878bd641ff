"""Training on a second device, in a process of its own: a device is registered for good."""

import subprocess
import sys

import pytest

from workbook.system.folders import ROOT


@pytest.mark.slow
def test_no_step_of_training_mixes_devices():
    checks = ROOT / "tests/second_device_checks.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 passed" in done.stdout
