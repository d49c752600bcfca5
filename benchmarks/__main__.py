"""The whole suite: `make bench` (under 45 minutes) and `make bench-quick` (five).

    python -m benchmarks [--quick] [--work DIR] [--baby DIR] [--results DIR]

Prints the report and writes latest.json, latest.md and latest.png; --quick writes quick.* instead. Ends with 1 where a
measurement failed. Interrupted, it ends what it has started.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import signal
import sys
import time
from pathlib import Path

from benchmarks import report
from benchmarks.electronics import default_work
from benchmarks.processes import ROOT
from benchmarks.suite import Plan, Suite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, once")
    parser.add_argument("--work", type=Path, default=default_work(), help="where datasets and runs are kept (10 GB)")
    parser.add_argument("--baby", type=Path, help="directory of Amazon Baby; without it a made-up shop stands in")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` ends what runs
    source = arguments.baby.resolve() if arguments.baby else None
    plan = Plan.quick() if arguments.quick else Plan()
    known = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "quick": arguments.quick}
    results = known | Suite(plan, arguments.work.resolve(), source).run()
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / ("quick" if arguments.quick else "latest")
    path.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    text = report.markdown(results)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    report.plot(results, path.with_suffix(".png"))
    print(text)
    sys.exit(1 if results["failures"] else 0)


def machine() -> dict:
    """Processor, memory and versions, for the reader of the numbers."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"^model name\s*: (.*)$", cpu, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", cpu, re.MULTILINE)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "dgl", "numba", "numpy")]
    return {
        "processor": model[1] if model else platform.machine(),
        "vector": sorted({flag for flag in (flags[1].split() if flags else []) if re.match(r"avx|amx|fma", flag)}),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
        "kernel": platform.release(),
    }


if __name__ == "__main__":
    main()
