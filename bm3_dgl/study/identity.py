"""What a run is, so that it is never done twice: the settings that its result depends on, its data, and the code.

Two runs with one identity end with the same numbers, whatever study asked for them. The identity is a hash of

- the resolved settings, without paths, display, resuming, how often to save, and how to find machines; of the section
  `data` only the modalities in use, since the dataset's hash stands for everything that made it;
- the number of ranks and, in studies of cost, that the run had the machine to itself, since times depend on these;
- the dataset's hash;
- the code: the rooms that compute a result or write the file that statistics read, as syntax trees without docstrings, so
  that comments and layout may change; and the versions of the libraries that compute.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bm3_dgl.config.fields import spell, walk
from bm3_dgl.config.schema import JobConfig

_PACKAGE = Path(__file__).resolve().parent.parent
_ROOMS = (
    *("types.py", "runtime", "graph", "model", "train", "evaluate"),
    *("export/users.py", "jobs/session.py", "jobs/train.py"),
)
_ONLY_TELL = {"train/journal.py", "train/profile.py", "train/watch.py"}  # what a run looks like, not what comes of it
_LIBRARIES = ("dgl", "numba", "numpy", "torch")
_NO_RESULT = {
    *("train.resume", "train.progress", "train.tensorboard", "train.profile"),
    *("train.checkpoint_steps", "train.checkpoint_epochs", "train.keep_checkpoints"),
    *("evaluate.block_users", "evaluate.users_file", "data.modalities"),  # modalities: by name, below
}
_NO_RESULT_SECTIONS = {"run", "data", "tables", "encode", "shop", "download", "partition", "cluster", "recommend"}


def result_settings(config: JobConfig) -> dict[str, str]:
    """Key -> value of the settings that a run's result depends on, beside its dataset."""
    settings = {
        key: spell(value)
        for key, _, value in walk(config)
        if key not in _NO_RESULT and key.partition(".")[0] not in _NO_RESULT_SECTIONS
    }
    return settings | {"data.modalities": spell(config.data.modalities), "data.dir": config.data.dir}


def run_identity(
    config: JobConfig, *, ranks: int, dataset: str, modalities: Sequence[str], code: str, alone: bool = False
) -> str:
    """Hexadecimal SHA-256. dataset: its hash. modalities: those it has. code: `code_hash()`."""
    settings = result_settings(config)
    del settings["data.dir"]  # the hash says more
    names = config.data.modalities
    settings["data.modalities"] = spell(list(modalities) if names is None else names)
    whole: dict[str, Any] = {"settings": settings, "ranks": ranks, "dataset": dataset, "code": code}
    if alone:
        whole["alone"] = True
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


@functools.cache
def code_hash(package: Path = _PACKAGE) -> str:
    """Hash of the code that computes results, and of its libraries' versions."""
    digest = hashlib.sha256()
    for room in _ROOMS:
        path = package / room
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            name = file.relative_to(package).as_posix()
            if name not in _ONLY_TELL:
                digest.update(f"{name}\n{meaning(file.read_text(encoding='utf-8'))}\n".encode())
    for library in _LIBRARIES:
        digest.update(f"{library}=={version(library)}\n".encode())
    return digest.hexdigest()


def meaning(source: str) -> str:
    """A file's syntax tree without docstrings: equal for sources that do the same and differ in words or layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)
