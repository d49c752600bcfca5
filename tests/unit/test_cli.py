"""What a launcher shows the shell: exit codes, and one line on standard error for a user's mistake."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from bm3_dgl.config import JobConfig
from bm3_dgl.errors import CheckpointError, ConfigError, DataError, DivergedError, JobError, UserError
from bm3_dgl.jobs.cli import INTERRUPTED, launch


@pytest.fixture(autouse=True)
def logger_as_before() -> Iterator[None]:
    """`launch` sets up the program's logger; later tests get it back as it was."""
    logger = logging.getLogger("bm3_dgl")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


def run(monkeypatch: pytest.MonkeyPatch, main: Callable[[JobConfig], None], *argv: str) -> object:
    """The exit code of a launcher that is called with these arguments."""
    monkeypatch.setattr(sys, "argv", ["train.py", *argv])
    with pytest.raises(SystemExit) as caught:
        launch("Train.", main)
    return caught.value.code


def raising(error: BaseException) -> Callable[[JobConfig], None]:
    def main(config: JobConfig) -> None:
        raise error

    return main


def test_a_job_that_returns_exits_with_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []
    assert run(monkeypatch, lambda config: seen.append(config.train.epochs), "train.epochs=3") == 0
    assert seen == [3]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError, 1), (ConfigError, 2), (DataError, 3), (CheckpointError, 4), (JobError, 5), (DivergedError, 6)],
)
def test_each_user_error_has_its_code_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[UserError], code: int
) -> None:
    assert run(monkeypatch, raising(error("items.parquet: row 3 is empty"))) == code
    assert capsys.readouterr() == ("", "error: items.parquet: row 3 is empty\n")


@pytest.mark.parametrize("argument", ["train.epoch=3", "train.epochs=x", "epochs", "--epochs", "--config=/no/such/file.yaml"])
def test_a_wrong_command_line_exits_with_2_before_the_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argument: str
) -> None:
    assert run(monkeypatch, raising(AssertionError("the job was called")), argument) == ConfigError.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_help_exits_with_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, raising(AssertionError("the job was called")), "--help") == 0
    assert "train.epochs=1000" in capsys.readouterr().out


def test_ctrl_c_exits_as_shells_expect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, raising(KeyboardInterrupt())) == INTERRUPTED == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_our_own_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(AssertionError, match="a bug"):
        launch("Train.", raising(AssertionError("a bug")))


def test_as_a_process() -> None:
    program = "from bm3_dgl.jobs.cli import launch; launch('Train.', lambda config: None)"
    done = subprocess.run(
        [sys.executable, "-c", program, "train.epochs=0"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (ConfigError.exit_code, "")
    assert done.stderr == "error: train.epochs=0: expected at least 1 epochs\n"
