"""From variants to runs: their datasets, made once before any run starts, and their identities."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bm3_dgl.config import JobConfig, save_config
from bm3_dgl.config.fields import spell, walk
from bm3_dgl.data.dataset import Dataset
from bm3_dgl.data.prepare import prepare
from bm3_dgl.errors import JobError, UserError
from bm3_dgl.graph import plan
from bm3_dgl.graph.measure import Graph, measured_graph
from bm3_dgl.graph.partition import ensure_partition
from bm3_dgl.runtime.ranks import cores, job_environment
from bm3_dgl.study.declare import Study, Variant
from bm3_dgl.study.identity import run_identity
from bm3_dgl.study.runs import Run, last_line, make_run

_SECTIONS = ("data", "tables", "encode", "shop", "partition")


@dataclass
class Maker:
    """Runs of variants. dataset: hash of the one that the first variant has."""

    study: Study
    datasets: Datasets
    code: str
    dataset: str = ""

    def runs(self, variant: Variant) -> list[Run]:
        """One for each seed."""
        settings, runs = self.study.settings, []
        for seed in settings.seeds:
            config = self.study.config(variant.overrides, seed)
            dataset = self.datasets.open(config)
            self.dataset = self.dataset or dataset.hash
            identity = run_identity(
                config,
                ranks=variant.ranks,
                dataset=dataset.hash,
                modalities=dataset.modalities,
                code=self.code,
                alone=self.study.alone,
            )
            runs.append(make_run(variant.name, seed, identity, config, ranks=variant.ranks, runs_dir=settings.runs_dir))
        return runs


@dataclass
class Datasets:
    """The datasets and partitions of a study's runs, each made once, before any run, so that no two runs make it at a time.

    partitioner: launch/partition.py. directory: for its settings and log.
    """

    partitioner: Path
    directory: Path
    _opened: dict[str, Dataset] = field(default_factory=dict)
    _graphs: dict[str, tuple[dict[str, Any], Graph]] = field(default_factory=dict)

    def open(self, config: JobConfig) -> Dataset:
        """Raises what launch/partition.py ends with, which makes both, in a process of its own to give memory back."""
        key, selection = _key(config), f"{_key(config)} {config.data.modalities}"
        if key not in self._graphs:
            self._make(config)
            dataset = self._opened[selection] = prepare(config)
            manifest = ensure_partition(config, dataset).manifest
            interactions = dataset.manifest["counts"]["interactions"]
            self._graphs[key] = manifest, measured_graph(manifest, interactions=interactions)
        if selection not in self._opened:
            self._opened[selection] = prepare(config)  # refuses modalities that are not there
        return self._opened[selection]

    def memory(self, run: Run) -> int:
        """Bytes that a run takes, as planned."""
        manifest, graph = self._graphs[_key(run.config)]
        job = plan.Job(run.config, plan.modality_widths(run.config, manifest["features"]), 1, run.ranks)
        part = graph.parts[0]
        parts = plan.private_bytes(job, graph, part), plan.shared_bytes(job, part, graph.cut)
        return sum(sum(sizes.values()) for sizes in parts) + plan.feature_bytes(job, part)

    def _make(self, config: JobConfig) -> None:
        settings, log = self.directory / "prepare.yaml", self.directory / "prepare.log"
        save_config(config, settings)
        with open(log, "ab") as file:
            command = [sys.executable, str(self.partitioner), "--config", str(settings)]
            environment = job_environment(cores())
            code = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file).returncode
        if code:
            kind = next((kind for kind in UserError.__subclasses__() if kind.exit_code == code), JobError)
            raise kind(last_line(log))


def _key(config: JobConfig) -> str:
    """Equal for configs of one dataset and partition."""
    settings = ((key, spell(value)) for key, _, value in walk(config) if key.partition(".")[0] in _SECTIONS)
    return repr([entry for entry in settings if entry[0] != "data.modalities"])
