"""Which run starts when: room for it on the machine, and no other study that has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from bm3_dgl.config import load_config
from bm3_dgl.study.runs import DONE, Run, is_taken, make_run, take
from bm3_dgl.study.schedule import Fixed, Room, Schedule

GIB = 2**30
LOOK = """
import fcntl, sys
lock = open(sys.argv[1] + "/.study/.lock")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    open(sys.argv[1] + "/summary.json", "w").write('{"valid": {}}')
"""  # a job that comes to its end only where a study holds its run

JOB = """
import sys, time
with open(sys.argv[1] + "/calls", "a") as calls:
    calls.write("call\\n")
time.sleep(0.3)  # the job has no lock of its own, as a real one in its first seconds
open(sys.argv[1] + "/summary.json", "w").write('{"valid": {}}')
"""
STUDY = """
import sys
from pathlib import Path
from bm3_dgl.study.schedule import Fixed, Room, Schedule
from tests.unit.study.test_room import JOB, runs_in

def command(run, settings):
    return [sys.executable, "-S", "-c", JOB, str(run.directory)]

def report(run, status, error, seconds):
    print(run.identity, status)

runs = runs_in(Path(sys.argv[1]), *"abcdef")
Schedule(Fixed(runs), Room(2, 2, 0, lambda run: 0), command, report).run()
"""


def runs_in(directory: Path, *names: str) -> list[Run]:
    return [make_run("v", 1, name, load_config(None, []), ranks=1, runs_dir=str(directory)) for name in names]


def test_a_run_has_the_cores_that_others_have_no_memory_to_use(tmp_path: Path) -> None:
    (run,) = runs_in(tmp_path, "a")
    share = {need: Room(8, 0, 10 * GIB, lambda run, need=need: need).share(run, 20) for need in (0, GIB, 4 * GIB, 99 * GIB)}
    assert share == {0: 1, GIB: 1, 4 * GIB: 4, 99 * GIB: 8}
    assert Room(8, 4, 10 * GIB, lambda run: 6 * GIB).share(run, 20) == 8
    assert Room(8, 0, 10 * GIB, lambda run: GIB).share(run, 2) == 4


def test_a_run_has_one_holder_at_a_time(tmp_path: Path) -> None:
    (run,) = runs_in(tmp_path, "a")
    assert not is_taken(run)
    lock = take(run)
    assert lock is not None and is_taken(run) and take(run) is None
    lock.close()
    assert not is_taken(run)


def test_a_run_of_another_study_waits_and_others_go_first(tmp_path: Path) -> None:
    first, second = runs_in(tmp_path, "a", "b")
    source = Fixed([first, second])
    lock = take(first)
    assert lock is not None
    assert source.next() is second and source.next() is None
    lock.close()
    assert source.next() is first and source.left() == 2


def test_a_run_that_is_taken_between_two_looks_is_put_back(tmp_path: Path) -> None:
    """Another study takes it while it waits for its place; it is neither started nor failed here."""
    (run,) = runs_in(tmp_path, "a")
    source, command, report = Fixed([run]), mock.Mock(side_effect=AssertionError("started")), mock.Mock()
    schedule = Schedule(source, Room(2, 2, GIB, lambda run: 0), command, report)
    schedule._waiting = source.next()
    lock = take(run)
    assert lock is not None
    schedule._fill()
    assert not schedule._running and not (run.directory / "run.json").exists() and not report.called
    lock.close()
    assert source.next() is run


def test_a_source_is_asked_when_there_is_a_place_and_not_before(tmp_path: Path) -> None:
    """Of a search: a trial that is drawn early is drawn without the value of the one before."""
    source = Fixed(runs_in(tmp_path, "a", "b", "c"))
    asked, ends = [], []

    def command(run: Run, settings: str) -> list[str]:
        return [sys.executable, "-S", "-c", LOOK, str(run.directory)]

    def next_run() -> Run | None:
        asked.append(len(ends))
        return Fixed.next(source)

    with mock.patch.object(source, "next", next_run):
        schedule = Schedule(source, Room(2, 1, GIB, lambda run: 0), command, lambda *end: ends.append(end))
        assert schedule.run() is None
    assert asked[:3] == [0, 1, 2] and len(ends) == 3
    others = runs_in(tmp_path, "d", "e")
    assert not Room(3, 0, 0, lambda run: 0).is_full(others) and Room(2, 0, 0, lambda run: 0).is_full(others)


def test_a_run_is_held_while_its_job_goes_on(tmp_path: Path) -> None:
    runs, ends = runs_in(tmp_path, "a", "b"), []

    def command(run: Run, settings: str) -> list[str]:
        return [sys.executable, "-S", "-c", LOOK, str(run.directory)]

    def report(run: Run, status: str, error: str | None, seconds: float) -> None:
        ends.append((run.identity, status, error, is_taken(run)))

    assert Schedule(Fixed(runs), Room(2, 2, GIB, lambda run: 0), command, report).run() is None
    assert sorted(ends) == [("a", DONE, None, False), ("b", DONE, None, False)]


def test_two_studies_at_once_do_each_run_once(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", STUDY, str(tmp_path)]
    studies = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [study.communicate(timeout=60)[0].splitlines() for study in studies]
    assert [sorted(lines) for lines in told] == [[f"{name} done" for name in "abcdef"]] * 2
    assert [path.read_text() for path in tmp_path.glob("*/calls")] == ["call\n"] * 6
