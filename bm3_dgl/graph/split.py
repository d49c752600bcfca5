"""Splits a dataset's graph with DGL, in a process of its own.

`run_split` starts the process and `main` runs in it. It writes bm3.json and part<k>/*.dgl (DGL's files),
node_map_user.npy, node_map_item.npy and edge_map.npy. Why a process:

- METIS as shipped in DGL 2.1.0 reads memory that it never wrote: the same graph in the same process comes out in
  different parts. With every malloc zeroed and glibc's per-thread cache off, which can be asked for only before a
  process starts, the result is the same each time (other allocators, preloaded, are not covered). It ignores
  DGL's seed; `seed` decides METHOD random alone.
- METIS ends the process on an internal error, spills large graphs into the working directory, and it and DGL print
  to the process's own descriptors. Here that is an exit code, a scratch directory and one captured text.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

import bm3_dgl
from bm3_dgl.data.dataset import Dataset, open_dataset
from bm3_dgl.errors import DataError
from bm3_dgl.log import logger
from bm3_dgl.runtime.lifeline import die_with_parent
from bm3_dgl.types import NODE_TYPES, RATES

GRAPH_NAME = "bm3"
EDGE_MAP = "edge_map.npy"
_EMPTY_PART = 3  # exit code
_PROGRAM = """import sys
sys.path.insert(0, sys.argv[1])
from bm3_dgl.graph.split import main
sys.exit(main(*sys.argv[2:]))"""
# perturb=255 fills what malloc hands out with 255 ^ 0xff = 0; tcache hands out without filling, so it is off.
# MALLOC_PERTURB_ is an older name of the same setting.
# One thread, since each of several would draw from a generator of its own, seeded in the order in which they start.
_ZEROED_MALLOC = ["-u", "MALLOC_PERTURB_", "GLIBC_TUNABLES=glibc.malloc.perturb=255:glibc.malloc.tcache_count=0"]


def node_map_file(ntype: str) -> str:
    """Name of the file that holds a node type's map."""
    return f"node_map_{ntype}.npy"


def run_split(dataset: Dataset, out: Path, *, parts: int, method: str, seed: int) -> None:
    """Split into `out`, an existing directory, in a child process; its chatter goes to the log.

    Raises DataError when a part comes out empty, or with the child's last line when it fails otherwise.
    """
    scratch = out / "scratch"
    scratch.mkdir()
    home = str(Path(bm3_dgl.__file__).resolve().parents[1])
    arguments = [str(dataset.directory.resolve()), str(out.resolve()), str(parts), method, str(seed)]
    done = subprocess.run(
        ["env", *_ZEROED_MALLOC, "OMP_NUM_THREADS=1", "DGLBACKEND=pytorch", sys.executable, "-c", _PROGRAM, home, *arguments],
        cwd=scratch,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    level = logging.DEBUG if done.returncode in (0, _EMPTY_PART) else logging.ERROR
    for line in lines:
        logger.log(level, "DGL: %s", line)
    if done.returncode == _EMPTY_PART:
        raise DataError(
            f"partition.parts={parts}: a part came out without users, items or train interactions "
            f"({dataset.num_users} users, {dataset.num_items} items); use fewer parts"
        )
    if done.returncode:
        last = lines[-1] if lines else "no output"
        raise DataError(f"{dataset.directory}: DGL cannot split it into {parts} parts (exit code {done.returncode}: {last})")
    shutil.rmtree(scratch)


def _split(dataset: Dataset, out: Path, parts: int, method: str, seed: int) -> None:
    """Partition and save the maps from partition space, int64: node id -> index, `rates` edge id -> train interaction.

    A machine's work is its rows and the edges that end in them, so METIS balances users, items and the edges of each
    (DGL balances node types of a heterograph always). What machines exchange are halo rows, not edges: hence the
    objective `vol`, the number of (node, foreign part) pairs, instead of `cut`.
    """
    import dgl

    from bm3_dgl.graph.build import build_graph  # late: the parent process needs no dgl

    dgl.seed(seed % 2**31)  # it takes a C int
    node_maps, edge_maps = dgl.distributed.partition_graph(
        build_graph(dataset),
        GRAPH_NAME,
        parts,
        str(out),
        num_hops=1,
        part_method=method,
        balance_edges=True,
        return_mapping=True,
        objtype="vol",
    )
    for ntype in NODE_TYPES:
        np.save(out / node_map_file(ntype), node_maps[ntype].numpy().astype(np.int64, copy=False))
    np.save(out / EDGE_MAP, edge_maps[RATES].numpy().astype(np.int64, copy=False))


def main(dataset_dir: str, out_dir: str, parts: str, method: str, seed: str) -> int:
    """The child process; returns its exit code."""
    import dgl

    die_with_parent()  # a killed parent must not leave a child that writes where the next run clears
    try:
        _split(open_dataset(Path(dataset_dir)), Path(out_dir), int(parts), method, int(seed))
    except (IndexError, dgl.DGLError) as error:
        # DGL takes the first node and edge of each type in each part without looking, and no subgraph for no nodes.
        if isinstance(error, dgl.DGLError) and "HeteroSubgraph" not in str(error):
            raise
        sys.stderr.write(f"{error}\n")
        return _EMPTY_PART
    return 0
