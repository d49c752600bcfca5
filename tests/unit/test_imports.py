"""The room plan, enforced: the package's imports point down, and some names appear only where they are allowed.

A file may import from the rooms that RULES gives to its room, and from its own. The table below is the plan itself.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "bm3_dgl"

GROUND = {"types", "errors", "log"}
FLOOR_1 = GROUND | {"config", "runtime"}
FLOOR_3 = FLOOR_1 | {"data", "graph"}
FLOOR_4 = FLOOR_3 | {"model", "model.propagation"}

RULES = {
    "types": GROUND,
    "errors": GROUND,
    "log": GROUND,
    "config": GROUND,
    "runtime": FLOOR_1,
    "data": FLOOR_1,
    "graph": FLOOR_1 | {"data"},
    "model": FLOOR_1,
    "model.propagation": FLOOR_3 | {"model"},
    "train": FLOOR_4,
    "evaluate": FLOOR_4,
    "export": FLOOR_4 | {"evaluate"},
    "study": FLOOR_3,
    "report": GROUND | {"config", "data"},
    "jobs": FLOOR_4 | {"train", "evaluate", "export", "study", "report"},
}
WITHOUT_DGL = GROUND | {"config", "data", "model", "report"}
NAMELESS_ROOMS = {"utils", "util", "common", "helpers", "helper", "misc"}
UNSAFE = {"torch.load", "pickle", "cPickle", "dill", "cloudpickle", "eval", "exec", "builtins.eval", "builtins.exec"}
ENVIRONMENT = {"os.environ", "os.getenv", "os.putenv", "os.unsetenv", "os.environb"}


def room_of(module: str) -> str:
    """The room of a dotted module below the package: `model.propagation.exact` -> `model.propagation`."""
    if module == "model.propagation" or module.startswith("model.propagation."):
        return "model.propagation"
    return module.partition(".")[0]


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str, str]]:
    """Line, absolute dotted name and local name of everything that is imported anywhere in the file, lazily too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, alias.asname or alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = f"bm3_dgl.{module}".split(".")
                here = here[: len(here) - node.level + is_package]
                base = ".".join([*here, base]) if base else ".".join(here)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}", alias.asname or alias.name


def names(tree: ast.AST, local: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of every name and attribute chain: `t.load` is torch.load after `import torch as t`."""
    for node in ast.walk(tree):
        parts: list[str] = []
        root = node
        while isinstance(root, ast.Attribute):
            parts.append(root.attr)
            root = root.value
        if isinstance(root, ast.Name) and isinstance(node, (ast.Attribute, ast.Name)):
            yield node.lineno, ".".join([local.get(root.id, root.id), *reversed(parts)])


def is_one_of(target: str, dotted: set[str]) -> bool:
    """Whether a dotted name is one of these, or inside one."""
    return any(target == name or target.startswith(f"{name}.") for name in dotted)


def violations(file: str, source: str) -> list[str]:
    """What is wrong with one file of the package; `file` is its path below bm3_dgl/."""
    path = Path(file)
    is_package = path.name == "__init__.py"
    module = ".".join(path.with_suffix("").parts[: -1 if is_package else None])
    room = room_of(module)
    found = [
        f"{file}: {part} says nothing about what is in it" for part in path.with_suffix("").parts if part in NAMELESS_ROOMS
    ]
    if module and room not in RULES:
        return [*found, f"{file}: {room} is no room of the plan"]
    tree = ast.parse(source)
    imported = list(imports(tree, module, is_package))
    local = {name: name if target.startswith(f"{name}.") else target for _, target, name in imported}
    used = {(line, target) for line, target, _ in imported} | set(names(tree, local))
    for line, target in sorted(used):
        where = f"{file}:{line}"
        inside, _, rest = target.partition(".")
        if inside == "bm3_dgl" and module and room_of(rest) in RULES:
            other = room_of(rest)
            if other != room and other not in RULES[room]:
                found.append(f"{where}: {room} imports {other}, which is not below it")
        if inside == "dgl" and room in WITHOUT_DGL:
            found.append(f"{where}: {room} works without dgl")
        if is_one_of(target, {"dgl.distributed"}) and room != "graph" and file != "runtime/servers.py":
            found.append(f"{where}: dgl.distributed belongs to graph/ and runtime/servers.py")
        if is_one_of(target, ENVIRONMENT) and room != "runtime":
            found.append(f"{where}: {target}: the environment is read in runtime/ only")
        if is_one_of(target, UNSAFE):
            found.append(f"{where}: {target} runs what a file holds")
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.append(f"{file}:{node.value.lineno}: allow_pickle runs what a file holds")
    return list(dict.fromkeys(found))


def package_files() -> list[str]:
    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", package_files())
def test_package_keeps_the_plan(file: str) -> None:
    assert violations(file, (PACKAGE / file).read_text(encoding="utf-8")) == []


def test_every_room_of_the_plan_is_there() -> None:
    rooms = {room_of(".".join(Path(file).with_suffix("").parts)) for file in package_files()}
    assert set(RULES) <= rooms


WRONG = [
    ("data/a.py", "from bm3_dgl.graph.build import build", "data imports graph"),
    ("data/a.py", "import bm3_dgl.train.loop", "data imports train"),
    ("data/a.py", "from bm3_dgl import jobs", "data imports jobs"),
    ("data/a.py", "import bm3_dgl\n\nbm3_dgl.graph.store.open()", "data imports graph"),
    ("data/a.py", "from ..graph import store", "data imports graph"),
    ("data/__init__.py", "from ..graph import store", "data imports graph"),
    ("data/a.py", "from .. import graph", "data imports graph"),
    ("data/a.py", "def f():\n    from bm3_dgl.graph import store", "a.py:2: data imports graph"),
    ("errors.py", "from bm3_dgl.config import JobConfig", "errors imports config"),
    ("config/a.py", "from bm3_dgl.runtime import ranks", "config imports runtime"),
    ("model/bm3.py", "from bm3_dgl.model.propagation import exact", "model imports model.propagation"),
    ("model/bm3.py", "from .propagation.exact import run", "model imports model.propagation"),
    ("model/bm3.py", "from bm3_dgl.data import dataset", "model imports data"),
    ("model/propagation/exact.py", "from bm3_dgl.train import step", "model.propagation imports train"),
    ("train/loop.py", "from bm3_dgl.evaluate import ranking", "train imports evaluate"),
    ("evaluate/a.py", "from bm3_dgl.train import loop", "evaluate imports train"),
    ("export/a.py", "from bm3_dgl.train import checkpoint", "export imports train"),
    ("export/a.py", "from bm3_dgl.jobs import cli", "export imports jobs"),
    ("data/a.py", "import dgl", "without dgl"),
    ("model/bm3.py", "from dgl.nn import GraphConv", "without dgl"),
    ("train/a.py", "import dgl.distributed as dist", "dgl.distributed belongs"),
    ("train/a.py", "from dgl import distributed", "dgl.distributed belongs"),
    ("train/a.py", "from dgl.distributed import DistGraph", "dgl.distributed belongs"),
    ("train/a.py", "import dgl\n\ndgl.distributed.initialize('x')", "a.py:3: dgl.distributed belongs"),
    ("runtime/ranks.py", "import dgl.distributed", "dgl.distributed belongs"),
    ("data/a.py", "import os\n\nhome = os.environ['HOME']", "environment is read in runtime/"),
    ("jobs/a.py", "from os import environ", "environment is read in runtime/"),
    ("jobs/a.py", "import os as o\n\no.getenv('HOME')", "environment is read in runtime/"),
    ("train/utils.py", "", "utils says nothing"),
    ("common/a.py", "", "common says nothing"),
    ("data/helpers/a.py", "", "helpers says nothing"),
    ("serve/a.py", "", "serve is no room of the plan"),
    ("train/a.py", "import torch\n\ntorch.load('x')", "torch.load runs"),
    ("train/a.py", "import torch as t\n\nt.load('x')", "torch.load runs"),
    ("train/a.py", "from torch import load", "torch.load runs"),
    ("train/a.py", "import pickle", "pickle runs"),
    ("train/a.py", "from pickle import loads", "pickle.loads runs"),
    ("train/a.py", "eval('1')", "eval runs"),
    ("train/a.py", "import numpy as np\n\nnp.load('x', allow_pickle=True)", "allow_pickle runs"),
    ("train/a.py", "import numpy as np\n\nnp.load('x', allow_pickle=bool(1))", "allow_pickle runs"),
]


@pytest.mark.parametrize(("file", "source", "message"), WRONG)
def test_finds(file: str, source: str, message: str) -> None:
    found = violations(file, source)
    assert any(message in line for line in found), found


RIGHT = [
    ("data/a.py", "from bm3_dgl.errors import DataError\nfrom bm3_dgl.data.dataset import Dataset"),
    ("data/a.py", "from .dataset import Dataset\nfrom ..errors import DataError"),
    ("runtime/a.py", "import os\n\nfrom bm3_dgl.config import JobConfig\n\nos.environ['DGL_ROLE'] = 'client'"),
    ("runtime/servers.py", "import dgl\n\ndgl.distributed.initialize('x')"),
    ("graph/store.py", "import dgl.distributed\n\ndgl.distributed.DistGraph('x')"),
    ("model/propagation/exact.py", "import dgl\nfrom bm3_dgl.graph import store\nfrom bm3_dgl.model import bm3"),
    ("train/a.py", "from bm3_dgl.model.propagation import base\n\nmodel.eval()"),
    ("export/a.py", "from bm3_dgl import __version__\nfrom bm3_dgl.evaluate import ranking"),
    ("jobs/a.py", "from bm3_dgl.export import topk\nfrom bm3_dgl.train import loop"),
    ("data/a.py", "import numpy as np\n\nnp.load('x', allow_pickle=False)"),
]


@pytest.mark.parametrize(("file", "source"), RIGHT)
def test_lets_pass(file: str, source: str) -> None:
    assert violations(file, source) == []
