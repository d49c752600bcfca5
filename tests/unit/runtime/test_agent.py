"""launch/torchrun.py: the job's exit code is the launcher's, and nothing is printed behind the job's last line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs import ROOT, free_port

SCRIPT = """
import os, signal, sys
from bm3_dgl.errors import DataError
from bm3_dgl.runtime.lifeline import leave_at_once
if os.environ["RANK"] == "1":
    {act}
"""


@pytest.mark.parametrize(
    "act, code, last",
    [
        ("pass", 0, ""),
        ("leave_at_once(DataError('items.csv: row 3'))", 3, "error: items.csv: row 3"),
        ("leave_at_once(ArithmeticError('a bug'))", 1, "ArithmeticError: a bug"),
        ("sys.exit(7)", 7, ""),
        ("os.kill(os.getpid(), signal.SIGKILL)", 5, "was killed by SIGKILL"),
    ],
)
def test_exit_code_and_last_line(tmp_path: Path, act: str, code: int, last: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(act=act))
    launcher = [sys.executable, str(ROOT / "launch" / "torchrun.py"), "--nproc_per_node=2", "--monitor-interval=0.1"]
    done = subprocess.run([*launcher, f"--master-port={free_port()}", str(script)], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[-1].endswith(last) if last else not lines, done.stderr
