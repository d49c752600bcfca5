"""How the ranks of a job find one another: one attempt that all agree on, and what each machine has to say.

torchrun restarts the processes of each machine by itself, and a pod that comes back is a new torchrun, so neither its
counters nor old keys in its store tell who belongs together. Rank 0 therefore names an attempt and lists its members;
a process starts when it finds itself on the list, and old processes are nobody's members.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from bm3_dgl.errors import JobError, UserError
from bm3_dgl.runtime.guard import MEET_SECONDS
from bm3_dgl.runtime.ranks import Ranks, restart_count

_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Attempt:
    """One try at the job, with the members that rank 0 has listed. tag: its name, part of all names in shared memory."""

    tag: str
    ranks: Ranks
    store: dist.Store
    hosts: list[str]  # of every machine
    pids: list[int]  # of every rank

    def name(self, machine: int) -> str:
        return f"machine {machine} ({self.hosts[machine]})"

    def local_ranks(self) -> range:
        """The ranks of this machine."""
        first = self.ranks.machine * self.ranks.local_world_size
        return range(first, first + self.ranks.local_world_size)

    def limit_waiting(self, seconds: float) -> None:
        """How long `await_value` waits at most: until there is a guard, the death of a member does not end the wait."""
        self.store.set_timeout(timedelta(seconds=seconds))

    def publish(self, key: str, value: object) -> None:
        self.store.set(key, json.dumps(value))

    def await_value(self, key: str) -> Any:
        """A value that another rank publishes. Raises JobError where it does not come within the limit."""
        try:
            return json.loads(self.store.get(key))
        except RuntimeError as error:
            if "imeout" not in str(error):
                raise
        raise JobError(f"no word about {key!r} from the rank that has to say it; look at what all machines print")

    def of_leader(self, key: str, make: Callable[[], Any]) -> Any:
        """make() of rank 0. COLLECTIVE. Its UserError is raised by all."""
        if self.ranks.leads:
            self._answer(key, make)
        return self._accept(self.await_value(key), 0)

    def of_machines(self, key: str, make: Callable[[], Any]) -> list[Any]:
        """make() of every machine's leading rank. COLLECTIVE. A machine's UserError is raised by all, with its name."""
        if self.ranks.leads_machine:
            self._answer(f"{key}/{self.ranks.machine}", make)
        answers = [self.await_value(f"{key}/{machine}") for machine in range(self.ranks.num_machines)]
        return [self._accept(answer, machine) for machine, answer in enumerate(answers)]

    def _answer(self, key: str, make: Callable[[], Any]) -> None:
        try:
            self.publish(key, {"value": make()})
        except UserError as error:
            self.publish(key, {"error": str(error), "code": error.exit_code})

    def _accept(self, answer: dict, machine: int) -> Any:
        if "error" in answer:
            where = f"{self.name(machine)}: " if self.ranks.num_machines > 1 else ""
            raise _error_with(answer["code"])(f"{where}{answer['error']}")
        return answer["value"]


def open_store(ranks: Ranks, *, seconds: float = MEET_SECONDS) -> dist.Store:
    """The key-value store of torchrun's agent on machine 0. Raises JobError where it is not reached in `seconds`."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_host = ranks.leads and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = dist.TCPStore(host, port, ranks.world_size, is_host, timeout=timedelta(seconds=seconds), wait_for_workers=False)
    except (RuntimeError, TimeoutError) as error:
        reason = str(error).splitlines()[0]
        raise JobError(f"torchrun of machine 0 does not answer at {host}:{port} ({reason}); is it running?") from None
    return dist.PrefixStore("bm3", store)


def report_failure(store: dist.Store, ranks: Ranks, error: UserError) -> bool:
    """Tell the ranks that wait in `meet` why this one does not come. Whether it is the first of its machine to do so."""
    key = f"failure/{restart_count()}"
    first = store.add(f"{key}/of/{ranks.machine}", 1) == 1
    if first and store.add(f"{key}/first", 1) == 1:
        line = f"machine {ranks.machine} ({socket.gethostname()}): {error}"
        store.set(f"{key}/line", json.dumps({"error": line if ranks.num_machines > 1 else str(error), "code": error.exit_code}))
        store.add(key, 1)
    return first


def _look_for_failures(store: dist.Store) -> None:
    key = f"failure/{restart_count()}"
    if store.add(key, 0) > 0:
        failure = json.loads(store.get(f"{key}/line"))
        raise _error_with(failure["code"])(failure["error"])


def meet(store: dist.Store, ranks: Ranks) -> Attempt:
    """Agree with all ranks on a new attempt. COLLECTIVE. Raises JobError for those who do not come."""
    nonce = secrets.token_hex(8)
    me = {"nonce": nonce, "pid": os.getpid(), "host": socket.gethostname()}
    store.set(f"member/{ranks.rank}", json.dumps(me))
    store.add(f"members/{ranks.rank}", 1)
    tag, members = _invite(store, ranks) if ranks.leads else _follow(store, ranks, nonce)
    own = dist.PrefixStore(tag, store)
    hosts = [member["host"] for member in members[:: ranks.local_world_size]]
    return Attempt(tag, ranks, own, hosts, [member["pid"] for member in members])


def _invite(store: dist.Store, ranks: Ranks) -> tuple[str, list[dict]]:
    """Rank 0: list whoever is there, and list again while a newcomer takes the place of one that is gone."""
    tag, deadline, listed = f"bm3_{secrets.token_hex(6)}", time.monotonic() + MEET_SECONDS, None
    while True:
        _look_for_failures(store)
        missing = [rank for rank in range(ranks.world_size) if store.add(f"members/{rank}", 0) == 0]
        if not missing:
            members = [json.loads(store.get(f"member/{rank}")) for rank in range(ranks.world_size)]
            if members != listed:
                listed = members
                store.set("attempt", json.dumps({"tag": tag, "members": members}))
                store.add("attempts", 1)
            nonces = [member["nonce"] for member in members]
            missing = [rank for rank in range(1, ranks.world_size) if store.add(f"{tag}/here/{nonces[rank]}", 0) == 0]
            if not missing:
                store.add(f"{tag}/go", 1)
                return tag, members
        if time.monotonic() > deadline:
            machines = sorted({rank // ranks.local_world_size for rank in missing})
            raise JobError(
                f"no word from rank {', '.join(map(str, missing))} of machine {', '.join(map(str, machines))} in"
                f" {MEET_SECONDS:.0f} s; start torchrun there with its own --node_rank and look at what it prints"
            )
        time.sleep(_POLL_SECONDS)


def _follow(store: dist.Store, ranks: Ranks, nonce: str) -> tuple[str, list[dict]]:
    """Other ranks: wait for a list with their name on it, say so, and wait for the word to go."""
    deadline, said = time.monotonic() + MEET_SECONDS, set()
    while time.monotonic() < deadline:
        _look_for_failures(store)
        if store.add("attempts", 0) > 0:
            attempt = json.loads(store.get("attempt"))
            tag, members = attempt["tag"], attempt["members"]
            if len(members) == ranks.world_size and members[ranks.rank]["nonce"] == nonce:
                if tag not in said:
                    said.add(tag)
                    store.add(f"{tag}/here/{nonce}", 1)
                if store.add(f"{tag}/go", 0) > 0:
                    return tag, members
        time.sleep(_POLL_SECONDS)
    raise JobError(
        f"the ranks of the job did not meet in {MEET_SECONDS:.0f} s; look at what the other machines' torchruns print"
    )


def _error_with(code: int) -> type[UserError]:
    return next((kind for kind in UserError.__subclasses__() if kind.exit_code == code), JobError)
