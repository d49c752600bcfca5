"""Checkpoints that are torn, damaged or of another model: found out, passed over, said."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bm3_dgl.config import load_config
from bm3_dgl.errors import CheckpointError
from bm3_dgl.jobs.session import Session, open_session
from bm3_dgl.train.checkpoint import Checkpoints, Progress
from bm3_dgl.train.order import EpochOrder
from bm3_dgl.train.step import Stepper

STATE = {"early_stop": {"best": 0.5, "best_epoch": 2, "since_best": 1}, "sums": [0.0] * 5}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    home = tmp_path_factory.mktemp("checkpoint")
    settings = ["debug=true", "shop.users=60", "shop.items=40", "model.embedding_dim=8", f"data.dir={home / 'data'}"]
    with open_session(load_config(None, settings)) as opened:
        yield opened


def checkpoints(session: Session, directory: Path, **identity: object) -> Checkpoints:
    return Checkpoints(directory, session.store, session.shares, identity={"dim": 8} | identity)


def advance(session: Session, step: int) -> None:
    order = EpochOrder(session.store.local.num_train, seed=1, epoch=1)
    Stepper(session.config, session.store, session.model).step(order.batch(step, 32), step)


def values(session: Session) -> list[torch.Tensor]:
    tables = [table.local.clone() for table in session.model.tables()]
    dense = [parameter.detach().clone() for parameter in session.model.head.parameters()]
    moments = [value.clone() for state in session.model.optimizer.state.values() for value in state.values()]
    return tables + dense + moments


def three_checkpoints(session: Session, directory: Path) -> tuple[Checkpoints, list[list[torch.Tensor]]]:
    written, saved = checkpoints(session, directory), []
    for step in (1, 2, 3):
        advance(session, step)
        written.save(session.model, Progress(step, STATE), best=step == 1, keep=2)
        saved.append(values(session))
    return written, saved


def assert_values(session: Session, expected: list[torch.Tensor]) -> None:
    found = values(session)
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))


def test_everything_comes_back(session: Session, tmp_path: Path) -> None:
    written, saved = three_checkpoints(session, tmp_path)
    advance(session, 4)
    assert written.load(session.model, "latest") == Progress(3, STATE)
    assert_values(session, saved[2])
    assert written.load(session.model, "best") == Progress(1, STATE)
    assert_values(session, saved[0])


def test_retention_keeps_the_newest_and_the_best(session: Session, tmp_path: Path) -> None:
    three_checkpoints(session, tmp_path)
    advance(session, 5)
    checkpoints(session, tmp_path).save(session.model, Progress(5, STATE), best=False, keep=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000001", "step-00000003", "step-00000005"]


@pytest.mark.parametrize("file", ["rows-00000.safetensors", "dense.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "missing"])
def test_a_damaged_one_is_passed_over(
    session: Session, tmp_path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    written, saved = three_checkpoints(session, tmp_path)
    path = tmp_path / "step-00000003" / file
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        content[len(content) // 2] ^= 0x10
        path.write_bytes({"cut": content[:-1], "flip": content, "empty": b""}[damage])
    found = written.load(session.model, "latest")
    assert found == Progress(2, STATE)
    assert_values(session, saved[1])


@pytest.mark.parametrize("file", ["rows-00000.safetensors", "dense.safetensors", "manifest.json"])
def test_torn_anywhere_or_one_bit_wrong(session: Session, tmp_path: Path, file: str) -> None:
    written, _ = three_checkpoints(session, tmp_path)
    path = tmp_path / "step-00000003" / file
    whole, draw = path.read_bytes(), random.Random(file)
    for _ in range(30):
        place = draw.randrange(len(whole))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << draw.randrange(8)
        for content in (whole[:place], bytes(flipped)):
            path.write_bytes(content)
            found = written.load(session.model, "latest")
            assert found is not None and found.step == 2, f"byte {place} of {len(whole)}"
    path.write_bytes(whole)
    found = written.load(session.model, "latest")
    assert found is not None and found.step == 3


def test_none_whole_is_an_error(session: Session, tmp_path: Path) -> None:
    written, _ = three_checkpoints(session, tmp_path)
    for path in tmp_path.glob("step-*/rows-00000.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        written.load(session.model, "latest")


def test_another_model_is_refused(session: Session, tmp_path: Path) -> None:
    three_checkpoints(session, tmp_path)
    with pytest.raises(CheckpointError, match="dim was 8 and is 16 now"):
        checkpoints(session, tmp_path, dim=16).load(session.model, "latest")


def test_nothing_there(session: Session, tmp_path: Path) -> None:
    assert checkpoints(session, tmp_path).load(session.model, "latest") is None
    assert checkpoints(session, tmp_path).load(session.model, "best") is None


def test_a_killed_save_leaves_no_trace(session: Session, tmp_path: Path) -> None:
    torn = tmp_path / ".step-00000009.tmp"
    torn.mkdir()
    (torn / "rows-00000.safetensors").write_bytes(b"half")
    written = checkpoints(session, tmp_path)
    assert written.load(session.model, "latest") is None
    written.save(session.model, Progress(1, STATE), best=True, keep=1)
    assert not torn.exists()


def test_going_on_from_an_older_one_drops_the_abandoned(session: Session, tmp_path: Path) -> None:
    written, _ = three_checkpoints(session, tmp_path)
    (tmp_path / "step-00000003" / "dense.safetensors").write_bytes(b"")
    found = written.load(session.model, "latest")
    assert found is not None and found.step == 2
    advance(session, 2)
    written.save(session.model, Progress(2, STATE), best=False, keep=1)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000001", "step-00000002"]


def test_killed_before_the_best_pointer(session: Session, tmp_path: Path) -> None:
    written, _ = three_checkpoints(session, tmp_path)
    written.save(session.model, Progress(4, STATE), best=True, keep=2)
    (tmp_path / "best").write_text("step-00000001")
    written.load(session.model, "latest")
    assert (tmp_path / "best").read_text() == "step-00000004"
