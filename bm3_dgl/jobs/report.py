"""Job `report`: a page about runs or a study. Job `compare`: two runs against each other. Both only read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bm3_dgl.config.load import Parser
from bm3_dgl.errors import ConfigError
from bm3_dgl.report.compare import compare
from bm3_dgl.report.document import Report
from bm3_dgl.report.files import write_report
from bm3_dgl.report.run import open_run
from bm3_dgl.report.run_page import run_report
from bm3_dgl.report.study import STUDY_FILE, open_study
from bm3_dgl.report.study_page import study_report


@dataclass(frozen=True)
class Request:
    """directories: runs, or one study. out: the page's path, None for report.html in the only directory."""

    directories: list[Path]
    out: Path | None = None


def report_command_line(description: str, argv: Sequence[str] | None = None) -> Request:
    parser = Parser(description=description, allow_abbrev=False)
    parser.add_argument("directories", nargs="+", type=Path, metavar="RUN_OR_STUDY", help="run.dir of runs, or one study.dir")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="the page; default: report.html in the only directory")
    arguments = parser.parse_args(argv)
    return Request(arguments.directories, arguments.out)


def compare_command_line(description: str, argv: Sequence[str] | None = None) -> Request:
    parser = Parser(description=description, allow_abbrev=False)
    parser.add_argument("directories", nargs=2, type=Path, metavar="RUN", help="run.dir of a run")
    return Request(parser.parse_args(argv).directories)


def main(request: Request) -> None:
    """Write the page, its Markdown twin and the files beside them."""
    out = request.out
    if out is None and len(request.directories) > 1:
        raise ConfigError("command line: several directories need --out FILE.html, the page to write")
    out = out or request.directories[0] / "report.html"
    if out.suffix != ".html":
        raise ConfigError(f"--out {out}: expected a name that ends in .html; the Markdown twin gets .md")
    paths = write_report(_report(request.directories), out)
    print(f"written: {', '.join(map(str, paths))}")


def compare_main(request: Request) -> None:
    """Print what differs."""
    first, second = (open_run(directory) for directory in request.directories)
    print(compare(first, second))


def _report(directories: Sequence[Path]) -> Report:
    studies = [directory for directory in directories if (directory / STUDY_FILE).is_file()]
    if studies and len(directories) > 1:
        raise ConfigError(f"command line: {studies[0]} is a study, which has a report of its own; give it alone")
    if studies:
        return study_report(open_study(studies[0]))
    return run_report([open_run(directory) for directory in directories])
