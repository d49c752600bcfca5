"""What an operator meets: `launch/partition.py --plan`, and docs/OPERATIONS.md, which must be true of the program."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from bm3_dgl.config.schema import JobConfig
from bm3_dgl.errors import ConfigError, UserError
from bm3_dgl.graph.measure import Graph, PartReport
from bm3_dgl.jobs.cli import INTERRUPTED
from bm3_dgl.jobs.partition import Command, plan_table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/OPERATIONS.md").read_text(encoding="utf-8")
SHOP = ["shop.users=120", "shop.items=50", "model.embedding_dim=8", "shop.visual_width=5", "shop.text_width=3"]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["partition.py", *arguments])
    launcher = Command()
    launcher.run(launcher.parse("Partition."))


def test_plan_of_a_dataset_splits_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SHOP, f"data.dir={tmp_path / 'data'}", "partition.parts=2"]
    command(monkeypatch, *settings, "--plan", "--ranks", "2")
    assert not (tmp_path / "data/parts").exists()
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["machines", "1", "2", "4", "8"]
    assert lines[4].split() == ["parts", *["expected"] * 4]
    assert len({len(line) for line in lines[3:-2]}) == 1
    command(monkeypatch, *settings)
    capsys.readouterr()
    command(monkeypatch, *settings, "--plan", "--machines", "2,3")
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].split() == ["parts", "measured", "expected"]


def test_plan_from_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    counts = ["--users", "2_000", "--items", "100", "--interactions", "10_000", "--feature-widths", "40,8"]
    command(monkeypatch, "--plan", *counts, "--machines", "4", "--ranks", "2", "train.batch_size=100")
    text = capsys.readouterr().out
    assert text.startswith("2,000 users, 100 items, 10,000 train interactions; features modality 1: 40, modality 2: 8\n")
    assert ["steps", "per", "epoch", "13"] in [line.split() for line in text.splitlines()]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--plan", "--users", "5"], r"--items is missing beside --users"),
        (["--machines", "2"], r"--machines is for --plan"),
        (["--plan", "--feature-widths", "3"], r"--feature-widths is for a plan from counts"),
        (["--plan", "--machines", "2,0"], r"'0' is no whole number from 1 on"),
        (["--plan", "--ranks", "two"], r"'two' is no whole number from 1 on"),
    ],
)
def test_wrong_command_lines(monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        command(monkeypatch, *arguments)


def test_each_value_is_that_of_the_machine_where_it_is_largest() -> None:
    parts = (PartReport(10, 50, 100, 100, 5, 5), PartReport(40, 20, 100, 100, 9, 0))
    graph = Graph(50, 70, 200, 200, 0.5, parts)
    lines = plan_table(JobConfig(), {}, lambda _: (graph, "measured"), machines=[2], ranks=1).splitlines()
    values = {line.rsplit(maxsplit=1)[0].strip(): line.split()[-1] for line in lines[3:]}
    assert (values["users"], values["items"], values["halo nodes"]) == ("40", "50", "10")


# the page


def test_the_page_names_every_environment_variable() -> None:
    found = set()
    for path in [*(ROOT / "bm3_dgl").rglob("*.py"), *(ROOT / "launch").glob("*.py")]:
        source = path.read_text(encoding="utf-8")
        if "environ" in source or '"env"' in source:
            found |= set(
                re.findall(
                    r"\"([A-Z][A-Z0-9_]{3,})\"|\b(DGL[A-Z_]*_[A-Z_]+|DGLBACKEND|GLIBC_TUNABLES|MALLOC_PERTURB_)\b", source
                )
            )
    names = {name for pair in found for name in pair if name}
    assert {"RANK", "BM3_VERDICT", "DGL_ROLE", "DGLBACKEND", "GLOO_SOCKET_IFNAME", "MALLOC_PERTURB_"} <= names
    names |= {"OMP_NUM_THREADS", "NUMBA_CACHE_DIR", "TMPDIR", "HOME"}
    assert [name for name in sorted(names) if f"`{name}`" not in PAGE] == []


def test_the_page_names_every_exit_code() -> None:
    codes = {kind.exit_code: kind.__name__ for kind in UserError.__subclasses__()}
    assert len(codes) == len(UserError.__subclasses__())
    for code, name in codes.items():
        assert re.search(rf"^\| {code} \|.*`{name}`", PAGE, re.MULTILINE), (code, name)
    for code in (0, 1, INTERRUPTED):
        assert re.search(rf"^\| {code} \|", PAGE, re.MULTILINE), code


def spoken(node: ast.expr) -> str:
    """The constant text of a message; what varies as a bar."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(spoken(value) for value in node.values)
    return " | "


@pytest.mark.parametrize("room", ["runtime", "jobs", "graph", "train", "evaluate", "export"])
def test_the_page_has_every_message(room: str) -> None:
    """Two or three words of each, at least. Rooms config and data have too many; they name the key or the file and the line."""
    speakers = {kind.__name__ for kind in UserError.__subclasses__()} | {"_lost", "_say"}
    for path in (ROOT / "bm3_dgl" / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (getattr(node.func, "id", "") or getattr(node.func, "attr", "")) in speakers:
                message = " | ".join(spoken(argument) for argument in node.args)
                words = re.findall(r"[\w./=*-]+(?: [\w./=*-]+){1,2}", message)
                assert not words or any(few in PAGE for few in words), f"{path.name}:{node.lineno}: {message}"


def test_the_plan_on_the_page_is_what_the_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = PAGE.split("## One billion interactions")[1]
    typed = section.split("launch/partition.py ")[1].split("\n\n")[0].replace("\\\n", " ")
    command(monkeypatch, *typed.split())
    printed = capsys.readouterr().out.splitlines()
    shown = [line[4:] for line in section.splitlines() if line.startswith("    ") and "GiB" in line]
    assert len(shown) > 10
    assert [line for line in shown if line not in printed] == []
