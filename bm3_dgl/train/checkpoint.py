"""Checkpoints: whole or not at all, found by content, readable at another world size.

    run.dir/checkpoints/
        step-00001234/
            rows-00000.safetensors    rank 0's rows of every table, and their dataset indices
            rows-00001.safetensors    ...
            dense.safetensors         the head's weights and its optimiser's moments
            manifest.json             format, cursor, early-stopping state, model's shape, every file's size and SHA-256, a seal
        latest, best                  text: the name of a step directory

A directory is written under a temporary name and renamed when its manifest is in it; pointers are replaced after
that, and old directories removed last. Rows are kept by dataset index, so that any number of ranks and parts reads
them. A checkpoint whose files do not match its manifest is passed over for the one before it, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from bm3_dgl.data.dataset import file_hash
from bm3_dgl.errors import CheckpointError
from bm3_dgl.graph.store import GraphStore, Table
from bm3_dgl.log import logger
from bm3_dgl.model.propagation.shares import Shares
from bm3_dgl.train.step import Model
from bm3_dgl.types import NODE_TYPES, GlobalStep

FORMAT_VERSION = 2
_MANIFEST = "manifest.json"
_INDEX = "index."  # + node type: dataset indices of a shard's rows


@dataclass(frozen=True)
class Progress:
    """Where training stands: steps done, and what early stopping and the log need to go on."""

    step: GlobalStep
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run. `save` and `load` are COLLECTIVE."""

    def __init__(self, directory: Path, store: GraphStore, shares: Shares, *, identity: Mapping[str, Any]) -> None:
        """identity: saved with each checkpoint; what is named must be equal for one to fit."""
        self._directory, self._store, self._shares = directory, store, shares
        self._identity = dict(identity)

    def save(self, model: Model, progress: Progress, *, best: bool, keep: int) -> None:
        """Write the state after `progress.step` steps, move the pointers, drop all but the newest `keep` and the best."""
        team = self._store.team
        name = f"step-{progress.step:08d}"
        part = self._directory / f".{name}.tmp"
        if team.ranks.leads:
            for torn in self._directory.glob(".step-*.tmp"):  # of a process that was killed while saving
                shutil.rmtree(torn, ignore_errors=True)
            part.mkdir(parents=True)
        team.barrier()
        entries = self._write_shard(part, model)
        entries = {name: entry for shard in team.gather_values(entries) for name, entry in shard.items()}
        if team.ranks.leads:
            best_name = name if best else self._best()
            manifest = {"format": FORMAT_VERSION, "step": progress.step, "state": progress.state, "best": best_name}
            manifest |= {"identity": self._identity, "files": entries}
            _write_text(part / _MANIFEST, json.dumps(manifest | {"seal": _seal(manifest)}, indent=1))
            final = self._directory / name
            shutil.rmtree(final, ignore_errors=True)
            part.rename(final)
            _sync(self._directory)
            _write_text(self._directory / "latest", name)
            if best:
                _write_text(self._directory / "best", name)
            self._retire(name, keep)
        team.barrier()

    def load(self, model: Model, which: str) -> Progress | None:
        """Load `latest` (or the newest that is whole) or `best` into the model; None where the run has none.

        Raises CheckpointError where checkpoints exist but none is whole, or the one found is of another model.
        """
        team = self._store.team
        found = self._find(which) if team.ranks.leads else None
        found = team.share(found)
        if found is None:
            return None
        if "error" in found:
            raise CheckpointError(found["error"])
        directory = self._directory / found["name"]
        self._load_rows(directory, model.tables(), [f for f in found["files"] if f.startswith("rows-")])
        _load_dense(directory / "dense.safetensors", model)
        team.barrier()
        return Progress(found["step"], found["state"])

    def _write_shard(self, part: Path, model: Model) -> dict[str, dict]:
        rank = self._store.team.ranks.rank
        content = {_INDEX + n: self._store.local.original[n][self._shares.rows(n)] for n in NODE_TYPES}
        content |= {table.name: table.local[self._shares.rows(table.ntype)] for table in model.tables()}
        files = {f"rows-{rank:05d}.safetensors": content}
        if rank == 0:
            files["dense.safetensors"] = _dense_state(model)
        entries = {}
        for name, tensors in files.items():
            try:
                save_file({key: value.contiguous() for key, value in tensors.items()}, part / name)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"{part / name}: cannot be written ({error}); free space, then train.resume=true"
                ) from None
            _sync(part / name)
            entries[name] = {"bytes": (part / name).stat().st_size, "sha256": file_hash(part / name)}
        return entries

    def _find(self, which: str) -> dict | None:
        """The manifest (with `name`) of the checkpoint asked for; {"error": ...} where there is none to be had."""
        names = sorted((path.name for path in self._directory.glob("step-*")), reverse=True)
        if which == "best":
            best = self._best()
            names = [best] if best else []
        if not names:
            return None
        reasons = []
        for name in names:
            manifest, reason = _verify(self._directory / name)
            if manifest is None:
                logger.warning("checkpoint %s is passed over: %s", self._directory / name, reason)
                reasons.append(f"{name}: {reason}")
                continue
            if which == "latest" and manifest["best"] not in (None, self._best()):
                _write_text(self._directory / "best", manifest["best"])  # killed between the two
            wrong = [key for key, value in self._identity.items() if manifest["identity"].get(key) != value]
            if wrong:
                key = wrong[0]
                got = f"{key} was {manifest['identity'].get(key)} and is {self._identity[key]} now"
                return {"error": f"{self._directory / name}: does not fit: {got}; set it back or choose another run.dir"}
            return manifest | {"name": name}
        return {"error": f"{self._directory}: no checkpoint is whole ({'; '.join(reasons)}); start anew in another run.dir"}

    def _load_rows(self, directory: Path, tables: Sequence[Table], files: Sequence[str]) -> None:
        """Read this rank's own rows out of all shards."""
        place = {}
        for ntype in NODE_TYPES:
            own = self._store.local.original[ntype][self._shares.rows(ntype)]
            place[ntype] = torch.full((self._store.local.num_nodes[ntype],), -1, dtype=torch.int64)
            place[ntype][own] = torch.arange(len(own)) + self._shares.own[ntype][0]
        for name in files:
            with safe_open(directory / name, framework="pt") as shard:
                rows = {ntype: place[ntype][shard.get_tensor(_INDEX + ntype)] for ntype in NODE_TYPES}
                for table in tables:
                    mine = rows[table.ntype] >= 0
                    if mine.any():
                        table.local[rows[table.ntype][mine]] = shard.get_tensor(table.name)[mine]

    def _retire(self, newest: str, keep: int) -> None:
        """Drop all but the newest `keep` and the best; later ones than the one just written are of a past that is undone."""
        names = sorted((path.name for path in self._directory.glob("step-*")), reverse=True)
        kept = [name for name in names if name <= newest][:keep]
        for name in names:
            if name not in kept and name != self._best():
                shutil.rmtree(self._directory / name, ignore_errors=True)

    def _best(self) -> str | None:
        pointer = self._directory / "best"
        return pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None


def _verify(directory: Path) -> tuple[dict | None, str]:
    """The manifest of a checkpoint that is whole, or None and why it is not."""
    try:
        manifest = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT_VERSION:
            return None, f"format {manifest['format']}, this program reads {FORMAT_VERSION}"
        if manifest.pop("seal") != _seal(manifest):
            return None, f"{_MANIFEST} is damaged"
        for name, entry in manifest["files"].items():
            path = directory / name
            if not path.is_file() or path.stat().st_size != entry["bytes"] or file_hash(path) != entry["sha256"]:
                return None, f"{name} is missing or damaged"
    except OSError as error:
        return None, f"{_MANIFEST} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, f"{_MANIFEST} is damaged"
    return manifest, ""


def _seal(manifest: dict) -> str:
    """SHA-256 of a manifest's content, by which a changed bit in it shows."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _dense_state(model: Model) -> dict[str, torch.Tensor]:
    """Head weights as "head.NAME", and Adam's moments and step as "adam.FIELD.NAME"."""
    content = {f"head.{name}": value.cpu() for name, value in model.head.state_dict().items()}
    for name, parameter in model.head.named_parameters():
        for key, value in model.optimizer.state.get(parameter, {}).items():
            content[f"adam.{key}.{name}"] = value.cpu()
    return content


def _load_dense(path: Path, model: Model) -> None:
    try:
        content = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); start anew in another run.dir") from None
    model.head.load_state_dict({key[5:]: value for key, value in content.items() if key.startswith("head.")})
    parameters = dict(model.head.named_parameters())
    for key, value in content.items():
        if key.startswith("adam."):
            _, moment, name = key.split(".", 2)
            place = value if moment == "step" else value.to(parameters[name].device)
            model.optimizer.state[parameters[name]][moment] = place


def _sync(path: Path) -> None:
    """Have a file's content, or a directory's names, on the disk: what is older is deleted after that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_text(path: Path, text: str) -> None:
    """Replace a small file in one step."""
    part = path.with_name(f".{path.name}.tmp")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
