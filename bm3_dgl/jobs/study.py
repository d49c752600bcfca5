"""Job `study`: run what a study declares, several runs at a time, and keep its results up to date.

Each run is launch/train.py as a process of its own. Whatever is killed when, the next call goes on: finished runs are not
repeated, begun ones resume from their checkpoints.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from bm3_dgl.config.fields import walk
from bm3_dgl.errors import JobError, Terminated
from bm3_dgl.log import logger
from bm3_dgl.model.registry import HEADS
from bm3_dgl.report.run import ITEMS_FILE
from bm3_dgl.runtime.addresses import LOOPBACK, free_port
from bm3_dgl.runtime.locks import lock_directory
from bm3_dgl.runtime.processes import available_memory
from bm3_dgl.runtime.ranks import cores, job_environment
from bm3_dgl.study.declare import Study, plain
from bm3_dgl.study.identity import code_hash
from bm3_dgl.study.make import Datasets, Maker
from bm3_dgl.study.progress import Progress
from bm3_dgl.study.results import Members, Results
from bm3_dgl.study.runs import DONE, FAILED, Run, last_line, status_of, take, write_text
from bm3_dgl.study.schedule import Fixed, Room, Schedule, Source
from bm3_dgl.study.search import Search
from bm3_dgl.study.settings import View

_DYING_SECONDS = 1.0  # a study that goes on may meet the end of the one before it


@dataclass
class StudyJob:
    """launchers: directory of launch/train.py and its siblings."""

    launchers: Path

    def main(self, study: Study) -> None:
        """Run to the end. Raises JobError where a run failed, Terminated on SIGTERM, KeyboardInterrupt on SIGINT."""
        lock = lock_directory(study.directory, seconds=_DYING_SECONDS)
        if lock is None:
            raise JobError(f"study.dir={study.directory}: another call works on this study; wait for its end")
        with lock:
            write_text(study.directory / "study.yaml", resolved(study))
            datasets = Datasets(self.launchers / "partition.py", study.directory)
            maker = Maker(study, datasets, code_hash())
            source, members = _source(study, maker)
            progress = Progress(study, source, members, Results(study, maker.dataset, maker.code))
            progress.write()
            room = Room(cores(), 1 if study.alone else study.settings.parallel, available_memory(), datasets.memory)
            number = Schedule(source, room, self._command, progress.report).run()
            if number is None and study.settings.view is View.table:
                self._export_items(members(), study.directory / "recommend.log")
            self._end(study, progress, number)

    def _command(self, run: Run, settings: str) -> list[str]:
        train = [str(self.launchers / "train.py"), "--config", settings]
        if run.config.debug:
            return [sys.executable, *train]
        torchrun = str(self.launchers / "torchrun.py")
        return [sys.executable, torchrun, f"--nproc_per_node={run.ranks}", f"--master-port={free_port(LOOPBACK)}", *train]

    def _export_items(self, members: Members, log: Path) -> None:
        """Item embeddings of each variant's first finished run, for the maps of the study's page. A failure is a warning."""
        for variant, runs in members:
            run = next((run for run in runs if status_of(run)[0] == DONE), None)
            if run is None or not HEADS[run.config.model.name].terms or (run.directory / ITEMS_FILE).is_file():
                continue
            lock = take(run)
            if lock is None:
                continue  # another study has come to its end, and exports them
            where = [f"run.dir={run.directory}", f"recommend.dir={run.directory}"]
            with lock, open(log, "ab") as file:
                code = subprocess.run(
                    [sys.executable, str(self.launchers / "recommend.py"), *where],
                    env=job_environment(cores()),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                ).returncode
            if code:
                logger.warning("no item embeddings of %s (%s): %s", variant.name, run.directory, last_line(log))

    def _end(self, study: Study, progress: Progress, number: int | None) -> None:
        progress.write()
        if number is not None:
            hint = "the runs have saved their state; call the study again and it goes on"
            if number == signal.SIGINT:
                logger.info("%s", hint)
                raise KeyboardInterrupt
            raise Terminated(f"study: ended by SIGTERM; {hint}")
        content = progress.content
        for sentence in content["conclusions"]:
            print(sentence)
        print(f"written: {study.directory}/study.json, tables/")
        failed = [run for variant in content["variants"] for run in variant["runs"] if run["status"] == FAILED]
        if failed:
            raise JobError(
                f"study: {len(failed)} runs failed, the first with: {failed[0]['error']}; called again, it tries these"
            )


def _source(study: Study, maker: Maker) -> tuple[Source, Callable[[], Members]]:
    """Where the runs come from, and the variants with their runs, which of a search are those so far."""
    fixed = [(variant, maker.runs(variant)) for variant in study.variants]
    if study.search is None:
        return Fixed(run for _, runs in fixed for run in runs), lambda: fixed
    search = Search(study, lambda variant: maker.runs(variant)[0])
    return search, search.members


def resolved(study: Study) -> str:
    """The declaration with what the command line has changed, as a study's file that stands in the study's directory."""

    def section(settings: Any) -> dict[str, Any]:
        return {key: plain(value) for key, _, value in walk(settings)}

    content: dict[str, Any] = {
        "study": section(study.settings),
        "base": os.path.relpath(study.base, study.directory),
        "set": list(study.shared),
    }
    if study.search is not None:
        space = {key: {k: v for k, v in asdict(dimension).items() if v is not None} for key, dimension in study.space.items()}
        content["search"] = section(study.search) | {"space": space}
    elif study.axes:
        content["grid"] = {key: list(values) for key, values in study.axes.items()}
    else:
        content["variants"] = {
            variant.name: {"ranks": variant.ranks, "set": list(variant.overrides)} for variant in study.variants
        }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
