"""A study whose jobs are fake_job.py: `python -m tests.unit.study.fake_study FILE STUDY_DIR [search]`, to be killed at will."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

from bm3_dgl.jobs import study as job
from bm3_dgl.jobs.cli import launch
from bm3_dgl.study import schedule
from bm3_dgl.study.declare import load_study
from bm3_dgl.study.runs import Run

FAKE_JOB = Path(__file__).with_name("fake_job.py")


class FakeMaker(job.Maker):
    """Identities without a dataset."""

    def runs(self, variant: object) -> list[Run]:
        opened = mock.Mock(hash="d" * 64, modalities=["text"])
        self.datasets = mock.Mock(open=lambda config: opened)
        return super().runs(variant)  # type: ignore[arg-type]


class FakeJob(job.StudyJob):
    def _command(self, run: Run, settings: str) -> list[str]:
        return [sys.executable, str(FAKE_JOB), settings]

    def _export_items(self, members: object, log: object) -> None:
        """The runs have no model."""


def main() -> None:
    fakes = mock.Mock(memory=lambda run: 0)
    with mock.patch.object(job, "Maker", FakeMaker), mock.patch.object(job, "Datasets", return_value=fakes):
        with mock.patch.object(schedule, "_LOOK_SECONDS", 0.1):
            fake = FakeJob(Path("launch"))
            launch("Fake.", fake.main, parse=lambda description: load_study(sys.argv[1], sys.argv[2:]))


if __name__ == "__main__":
    main()
