"""A small sample of the kills and full disks in `faults.py`."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_killed_command_is_completed_and_a_full_disk_said():
    script = Path(__file__).parent / "support" / "faults.py"
    commands = ["features", "train", "score", "push", "caption"]
    process = subprocess.run(
        [sys.executable, script, "--kills", "1", "--changes", "1", "--breaks", "1", "--commands", *commands],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-1000:]
    assert [line.split(":")[0] for line in process.stdout.splitlines()] == commands
