"""Checks before slow work."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from bm3_dgl.config import load_config
from bm3_dgl.data.prepare import prepare
from bm3_dgl.errors import ConfigError, JobError
from bm3_dgl.graph.partition import ensure_partition
from bm3_dgl.jobs import session
from bm3_dgl.runtime.ranks import Ranks


def test_shared_memory_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(None, ["shop.users=50", "shop.items=30", f"data.dir={tmp_path / 'data'}"])
    partition = ensure_partition(config, prepare(config))
    ranks = Ranks(0, 2, 0, 2, 0, 1)
    session.check_shared_memory(config, partition, ranks)
    usage = shutil.disk_usage("/dev/shm")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=64 << 10))
    with pytest.raises(JobError, match=r"/dev/shm: 24 MiB are needed and 0 MiB are free; enlarge it"):
        session.check_shared_memory(config, partition, ranks)


def test_device_that_is_not_there() -> None:
    assert session.head_device("cpu", Ranks()) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"train\.device=cuda:7: this machine has"):
        session.head_device("cuda:7", Ranks())
