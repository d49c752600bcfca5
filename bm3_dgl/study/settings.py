"""Every setting of a study's file beside its variants, with its default, meaning and range.

Annotations are evaluated here (no `from __future__ import annotations`), as in config/schema.py.
"""

from dataclasses import dataclass, field
from enum import Enum

from bm3_dgl.config.schema import LARGEST_SEED, setting


class View(Enum):
    table = "table"
    lines = "lines"
    heat = "heat"
    cost = "cost"
    search = "search"


class Pruner(Enum):
    median = "median"
    none = "none"


@dataclass
class StudySettings:
    name: str = setting("", "Name of the study; empty: that of its file, without `study_`.")
    title: str = setting("", "Heading of its report; empty: the name.")
    question: str = setting("", "What the study is to answer, in a sentence.")
    metric: str = setting("recall@20", "Metric that variants are compared by: recall@K or ndcg@K.")
    seeds: list[int] = setting([1, 2, 3], "Every variant is trained once with each.", low=0, high=LARGEST_SEED, unique=True)
    ranks: int = setting(1, "Processes of a run.", low=1)
    parallel: int = setting(0, "Runs at a time; 0: as many as cores and memory hold.", low=0)
    dir: str = setting("", "Directory of the study's results; empty: runs/studies/NAME.")
    runs_dir: str = setting("runs/studies/runs", "Directory of the runs, which studies share.")
    view: View = setting(View.table, "How the results are shown; `cost` also runs one at a time, so that times are comparable.")
    baseline: str = setting("", "Variant that the others are compared with; empty: the first.")


@dataclass
class SearchSettings:
    trials: int = setting(30, "Settings to try, the base's own being the first.", low=2)
    startup_trials: int = setting(8, "Trials drawn at random before the sampler learns from them.", low=1)
    pruner: Pruner = setting(Pruner.median, "`median`: end runs whose best value so far is below the others' median.")
    pruner_trials: int = setting(4, "Finished trials before any is ended early.", low=1)
    pruner_epochs: int = setting(20, "Epochs that every trial may train.", unit="epochs", low=1)
    seed: int = setting(1, "Seed of the sampler.", low=0, high=2**31)


@dataclass
class Dimension:
    """One key of search.space."""

    low: float | None = setting(None, "Least value.")
    high: float | None = setting(None, "Largest value.")
    log: bool = setting(False, "Whether to search on a logarithmic scale.")
    choices: list[str] = setting([], "Values to choose from, in place of low and high.", unique=True)


@dataclass
class StudyRoot:
    """What key=value on a study's command line can change beside the settings of its runs."""

    study: StudySettings = field(default_factory=StudySettings)
    search: SearchSettings = field(default_factory=SearchSettings)
