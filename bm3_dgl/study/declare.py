"""A study's file and command line -> a checked Study: its settings, and the variants whose runs it consists of.

    study: {title: ..., question: ..., seeds: [1, 2, 3]}     # settings.py lists the keys
    base: amazon_baby.yaml                                   # relative to this file
    set: [train.epochs=100]                                  # of every run
    variants: {all: [], "without text": ["data.modalities=[visual]"], "two ranks": {ranks: 2, set: [debug=false]}}
    grid: {model.layers: [1, 2], model.dropout: [0.3, 0.5]}                     # in the place of variants, or
    search: {trials: 30, space: {model.reg_weight: {low: 1e-5, high: 1, log: true}}}

On the command line `study.KEY=value` and `search.KEY=value` change the study, every other key its runs. Every mistake
raises ConfigError, one line, before anything runs.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from bm3_dgl.config import JobConfig, load_config
from bm3_dgl.config.fields import choices, optional, shorten, spell, walk
from bm3_dgl.config.load import Parser, check_settings
from bm3_dgl.config.read import read_override
from bm3_dgl.errors import ConfigError
from bm3_dgl.study.identity import result_settings
from bm3_dgl.study.read import StudyReader
from bm3_dgl.study.settings import Dimension, SearchSettings, StudyRoot, StudySettings, View

_METRIC = re.compile(r"(recall|ndcg)@([0-9]+)")
_OF_THE_STUDY = {
    "train.seed": "it is one of study.seeds",
    "run.dir": "it is a folder of study.runs_dir",
    "train.resume": "runs of a study always resume",
    "train.max_steps": "a trial is not judged",
    "partition.parts": "a study runs on one machine",
}
_FIXED = ["train.resume=true", "train.progress=false", "train.keep_checkpoints=1", "evaluate.users_file=true"]


@dataclass(frozen=True)
class Variant:
    """What is compared. overrides: beside the settings that all runs have. values: of the keys that make it what it is."""

    name: str
    overrides: tuple[str, ...]
    values: Mapping[str, Any]
    ranks: int


@dataclass(frozen=True)
class Study:
    """A checked declaration. axes: key -> values, of a grid. space: of a search, whose other variants come as it goes."""

    settings: StudySettings
    base: str
    shared: tuple[str, ...]
    variants: tuple[Variant, ...] = ()
    axes: Mapping[str, list[Any]] = field(default_factory=dict)
    search: SearchSettings | None = None
    space: Mapping[str, Dimension] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        return Path(self.settings.dir)

    @property
    def baseline(self) -> str:
        return self.settings.baseline or self.variants[0].name

    @property
    def alone(self) -> bool:
        """Whether its runs have the machine to themselves."""
        return self.settings.view is View.cost

    def config(self, overrides: Sequence[str], seed: int) -> JobConfig:
        """The settings of a run with such overrides; its run.dir is still to be set."""
        return load_config(self.base, [*self.shared, *overrides, f"train.seed={seed}", *_FIXED])

    def variant(self, name: str, overrides: Sequence[str], ranks: int) -> Variant:
        """Raises ConfigError, which names the variant, where its settings are not allowed."""
        for key in (text.partition("=")[0].strip() for text in (*self.shared, *overrides)):
            if key in _OF_THE_STUDY:
                raise ConfigError(f"variant {name!r}: {key} cannot be set here, since {_OF_THE_STUDY[key]}")
        try:
            config = self.config(overrides, self.settings.seeds[0])
        except ConfigError as error:
            raise ConfigError(f"variant {name!r}: {str(error).removeprefix('command line: ')}") from None
        _check_run(self.settings, name, config, ranks)
        have = {key: plain(value) for key, _, value in walk(config)}
        keys = [text.partition("=")[0].strip() for text in overrides]
        return Variant(name, tuple(overrides), {key: have[key] for key in keys if key in have}, ranks)


def load_study(file: str, overrides: Sequence[str] = ()) -> Study:
    """Read and check a study; overrides: `key=value` of the command line."""
    reader = StudyReader(file)
    kinds = [kind for kind in ("variants", "grid", "search") if kind in reader.parts]
    if len(kinds) != 1:
        raise ConfigError(f"--config {file}: has {' and '.join(kinds) or 'none'} of variants, grid, search; one is expected")
    own = [text for text in overrides if text.partition("=")[0].partition(".")[0] in ("study", "search")]
    root = _settings(reader, own, file)
    base = str(Path(file).parent / reader.base())
    load_config(base)
    study = Study(root.study, base, (*reader.shared(), *(text for text in overrides if text not in own)))
    try:
        if kinds == ["variants"]:
            named = [study.variant(name, texts, ranks or root.study.ranks) for name, texts, ranks in reader.variants()]
            study = replace(study, variants=tuple(named))
        elif kinds == ["grid"]:
            study = _grid(study, reader.grid())
        else:
            study = _search(study, root.search, reader.space())
        _check(study)
    except ConfigError as error:
        raise ConfigError(f"--config {file}: {error}") from None
    return study


def command_line(description: str) -> Study:
    """Parse `--config FILE key=value ...` of launch/study.py."""
    keys = "\n".join(f"  {key}={spell(value)}\n      {field.metadata['help']}" for key, field, value in walk(StudyRoot()))
    parser = Parser(
        description=description,
        epilog=f"keys and their defaults; every other key is a setting of all runs (launch/train.py --help):\n{keys}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", required=True, help="the study's YAML file, such as configs/study_*.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the study, or of all its runs")
    arguments = parser.parse_intermixed_args()
    return load_study(arguments.config, arguments.overrides)


def plain(value: Any) -> Any:
    """A setting's value as JSON has it."""
    if isinstance(value, Enum):
        return value.name
    return [plain(element) for element in value] if isinstance(value, list) else value


def _settings(reader: StudyReader, overrides: Sequence[str], file: str) -> StudyRoot:
    values: dict[str, dict[str, Any]] = {"study": {}, "search": {}}
    for layer in (reader.settings(), *(_override(text) for text in overrides)):
        for section, found in layer.items():
            values[section] |= found
    study, search = StudySettings(**values["study"]), SearchSettings(**values["search"])
    name = study.name or Path(file).stem.removeprefix("study_")
    study = replace(study, name=name, title=study.title or name, dir=study.dir or f"runs/studies/{name}")
    check_settings(StudyRoot(study, search))
    if not study.seeds:
        raise ConfigError(f"--config {file}: study.seeds=[]: at least one seed is needed")
    if not _METRIC.fullmatch(study.metric):
        raise ConfigError(f"--config {file}: study.metric={shorten(study.metric)}: expected recall@K or ndcg@K")
    return StudyRoot(study, search)


def _override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"command line: {shorten(text)!r} is not of the form key=value, for example study.parallel=2")
    return read_override(key.strip(), value, StudyRoot())


def _grid(study: Study, grid: Mapping[str, list[str]]) -> Study:
    variants = []
    for values in itertools.product(*grid.values()):
        overrides = [f"{key}={value}" for key, value in zip(grid, values, strict=True)]
        variant = study.variant(", ".join(overrides), overrides, study.settings.ranks)
        short = (f"{key.rpartition('.')[2]}={spell(value)}" for key, value in variant.values.items())
        variants.append(replace(variant, name=", ".join(short)))
    axes: dict[str, list[Any]] = {key: [] for key in grid}
    for key, variant in itertools.product(grid, variants):
        if variant.values[key] not in axes[key]:
            axes[key].append(variant.values[key])
    return replace(study, variants=tuple(variants), axes=axes)


def _search(study: Study, search: SearchSettings, space: Mapping[str, Dimension]) -> Study:
    """The first trial is the base itself, so its values have to lie in the space."""
    if len(study.settings.seeds) != 1:
        raise ConfigError(f"study.seeds={spell(study.settings.seeds)}: a search trains each trial once; give one seed")
    base = study.variant("base", [], study.settings.ranks)
    have = {key: (field, value) for key, field, value in walk(study.config([], study.settings.seeds[0]))}
    for key, dimension in space.items():
        if key not in have:
            raise ConfigError(f"search.space: unknown key {shorten(key)}; launch/train.py --help lists every key")
        _check_dimension(study, key, dimension, *have[key])
    values = {key: plain(have[key][1]) for key in space}
    return replace(study, variants=(replace(base, values=values),), search=search, space=space)


def _check_dimension(study: Study, key: str, dimension: Dimension, field: Any, value: Any) -> None:
    where, kind = f"search.space.{key}", optional(field.type)[0]
    if dimension.choices:
        ends, inside = dimension.choices, spell(value) in dimension.choices
    else:
        if kind not in (int, float) or choices(field.type):
            raise ConfigError(f"{where}: is no number; give choices: [...]")
        if dimension.low is None or dimension.high is None or dimension.low >= dimension.high:
            raise ConfigError(f"{where}: expected low and high with low < high, or choices")
        if dimension.log and dimension.low <= 0:
            raise ConfigError(f"{where}.low={dimension.low:g}: expected above 0 on a logarithmic scale")
        inside = dimension.low <= value <= dimension.high
        ends = [str(kind(dimension.low)), str(kind(dimension.high))]
    if not inside:
        raise ConfigError(f"{where}: the base's value {spell(value)} lies outside, and it is the first trial; widen the space")
    for end in ends:
        study.variant(f"{key}={end}", [f"{key}={end}"], study.settings.ranks)


def _check_run(settings: StudySettings, name: str, config: JobConfig, ranks: int) -> None:
    cutoff = int(settings.metric.partition("@")[2])
    if cutoff not in config.evaluate.cutoffs:
        have = spell(config.evaluate.cutoffs)
        raise ConfigError(f"variant {name!r}: study.metric={settings.metric} is not measured by evaluate.cutoffs={have}")
    if config.debug and ranks > 1:
        raise ConfigError(f"variant {name!r}: debug=true runs one process, and ranks={ranks}; set debug=false beside it")
    if config.partition.parts != 1:
        raise ConfigError(f"variant {name!r}: partition.parts={config.partition.parts}; a study runs on one machine, with 1")


def _check(study: Study) -> None:
    settings, names = study.settings, [variant.name for variant in study.variants]
    if settings.baseline and settings.baseline not in names:
        raise ConfigError(f"study.baseline={settings.baseline}: is none of the variants, which are: {', '.join(names)}")
    wanted = {View.lines: 1, View.heat: 2}.get(settings.view)
    if wanted is not None and len(study.axes) != wanted:
        raise ConfigError(f"study.view={settings.view.name}: needs a grid of {wanted} keys, and there are {len(study.axes)}")
    if (settings.view is View.search) != bool(study.space):
        raise ConfigError(f"study.view={settings.view.name}: `search` is the view of a study with search, and of no other")
    seen: dict[str, str] = {}
    for variant in study.variants:
        same = repr((result_settings(study.config(variant.overrides, settings.seeds[0])), variant.ranks))
        if same in seen:
            raise ConfigError(f"variants {seen[same]!r} and {variant.name!r} have the same settings; keep one")
        seen[same] = variant.name
