"""Before any work: all machines hold the same configuration, the same partition, and one run directory.

Each check is COLLECTIVE and raises on every rank alike one line that names the machine that differs from machine 0.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from bm3_dgl import __version__
from bm3_dgl.config.fields import spell, walk
from bm3_dgl.config.schema import JobConfig
from bm3_dgl.data.dataset import Dataset
from bm3_dgl.errors import ConfigError, DataError
from bm3_dgl.graph.partition import Partition, ensure_partition, open_partition, partition_directory
from bm3_dgl.runtime.meeting import Attempt

_LOCAL_KEYS = {"run.dir", "data.dir", "data.source", "partition.dir", "recommend.dir"}  # paths may differ by machine
_VISIBLE_SECONDS = 15.0  # a network drive may show a new file late


def agree_on_config(attempt: Attempt, config: JobConfig) -> None:
    """Raise ConfigError where a machine runs with another value of a key, or another version of this program."""
    settings = {key: spell(value) for key, _, value in walk(config) if key not in _LOCAL_KEYS}
    settings["version of bm3_dgl"] = __version__
    first, *others = attempt.of_machines("config", lambda: settings)
    for machine, other in enumerate(others, 1):
        different = [key for key in first | other if first.get(key) != other.get(key)]
        if different:
            key = different[0]
            raise ConfigError(
                f"{attempt.name(machine)}: {key}={other.get(key)}, and {first.get(key)} on {attempt.name(0)}; start every"
                " machine with the same configuration"
            )


def agree_on_run_dir(attempt: Attempt, config: JobConfig) -> None:
    """Raise ConfigError where a machine's run.dir is not the directory that machine 0 writes to."""
    run_dir, ranks = Path(config.run.dir), attempt.ranks
    if ranks.num_machines == 1:
        return
    sign = run_dir / f".{attempt.tag}.sign"
    if ranks.leads:
        run_dir.mkdir(parents=True, exist_ok=True)
        for old in run_dir.glob(".bm3_*.sign"):  # of a job that was killed meanwhile
            old.unlink(missing_ok=True)
        sign.touch()
        attempt.publish("sign", True)
    attempt.await_value("sign")

    def look() -> bool:
        deadline = time.monotonic() + _VISIBLE_SECONDS
        while not sign.exists():
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"run.dir={run_dir}: is not the directory that machine 0 writes to ({sign.name} does not appear); put it"
                    " on storage that all machines share"
                )
            if run_dir.is_dir():
                os.listdir(run_dir)  # asks a network drive anew
            time.sleep(0.2)
        return True

    try:
        attempt.of_machines("seen", look)
    finally:
        if ranks.leads:
            sign.unlink(missing_ok=True)


def agree_on_partition(attempt: Attempt, config: JobConfig, dataset: Dataset | None) -> Partition:
    """This machine's copy of the partition, which machine 0 makes where needed while the others wait.

    Raises DataError where a machine has none, or another one.
    """
    ranks, directory = attempt.ranks, partition_directory(config)
    if ranks.leads:
        assert dataset is not None, "rank 0 has the dataset"
        attempt.publish("partition", ensure_partition(config, dataset, part=0).digest)
    wanted = attempt.await_value("partition")

    def check() -> bool:
        found = open_partition(directory, part=ranks.machine)
        if found.digest != wanted:
            raise DataError(
                f"{directory}: is not the partition of machine 0 (dataset {found.manifest['dataset_hash'][:12]},"
                f" {found.num_parts} parts, {found.manifest['method']}, content {found.digest[:12]}, not {wanted[:12]}); copy"
                " that of machine 0, without the parts of other machines if you like"
            )
        return True

    attempt.of_machines("checked", check)
    return open_partition(directory, part=ranks.machine)
