"""What the ranks say to each other, typed. Every method of Team is COLLECTIVE: all ranks call it, in the same order.

A team of one needs no process group: debug mode and one rank run the same lines. The ranks of a single machine meet in
shared memory where that is possible; several machines meet over the network.

Annotations are evaluated here (no `from __future__ import annotations`): DDP compares those of its hook.
"""

import contextlib
import itertools
import json
import mmap
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from bm3_dgl.runtime.phases import Phases
from bm3_dgl.runtime.ranks import Ranks
from bm3_dgl.runtime.shared import SharedBarrier, map_shared

_SUM_VALUES = 8  # most numbers that `sum_few` takes
MAIL_BYTES = 6 << 20  # per rank, twice; larger mail goes through torch.distributed


@dataclass
class Traffic:
    """What one purpose costs this rank: bytes sent to (or asked from) other machines, and seconds spent in it."""

    num_bytes: int = 0
    seconds: float = 0.0

    @contextlib.contextmanager
    def crossing(self, num_bytes: int) -> Iterator[None]:
        self.num_bytes += num_bytes
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began


class HeadGradients:
    """The gradients of all dense weights in one row, in the order of registration.

    DDP lays its buckets out anew after the first step. An order of sums that follows them would change there, and a
    resumed run, which has a first step again, would differ from an uninterrupted one in the last bits.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        weights = list(parameters)
        ends = list(itertools.accumulate(weight.numel() for weight in weights))
        self._place = {w.data_ptr(): slice(end - w.numel(), end) for w, end in zip(weights, ends, strict=True)}
        self.flat = torch.empty(ends[-1], dtype=weights[0].dtype, device=weights[0].device)
        self._waiting: list[tuple[dist.GradBucket, torch.futures.Future[torch.Tensor]]] = []

    def add(self, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """Take a bucket's gradients; its future is set by `deliver`."""
        for weight, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            self.flat[self._place[weight.data_ptr()]] = gradient.reshape(-1)
        self._waiting.append((bucket, torch.futures.Future()))
        return self._waiting[-1][1]

    def deliver(self) -> None:
        """Lay what `flat` holds now into the buckets."""
        for bucket, future in self._waiting:
            for weight, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
                gradient.copy_(self.flat[self._place[weight.data_ptr()]].view_as(gradient))
            future.set_result(bucket.buffer())
        self._waiting.clear()


class Team:
    """The ranks of the job, over torch.distributed's default process group (CPU tensors)."""

    def __init__(self, ranks: Ranks, *, tag: str = "") -> None:
        """tag: the job's, for names in shared memory; without it all goes through torch.distributed. COLLECTIVE."""
        self.ranks = ranks
        self.alone = ranks.world_size == 1
        self.traffic: dict[str, Traffic] = defaultdict(Traffic)  # by purpose; counted where there are several machines
        self.phases = Phases()
        self._tag = tag
        self._token = torch.zeros(1)
        self._meeting: SharedBarrier | None = None
        self._turn = 0
        if tag and not self.alone and ranks.num_machines == 1:
            meeting = SharedBarrier(f"{tag}_barrier", ranks, self.barrier)
            slots = self.map_shared("sums", 2 * ranks.world_size * _SUM_VALUES * 8)
            self._slots = torch.frombuffer(slots, dtype=torch.float64).view(2, ranks.world_size, _SUM_VALUES)
            mail = self.map_shared("mail", 2 * ranks.world_size * MAIL_BYTES)
            self._mail = torch.frombuffer(mail, dtype=torch.float32).view(2, ranks.world_size, -1)
            self._meeting = meeting

    def map_shared(self, name: str, size: int) -> mmap.mmap:
        """Zero bytes that this machine's ranks share. COLLECTIVE."""
        return map_shared(f"{self._tag}_{name}_{self.ranks.machine}", size, self.ranks, self.barrier)

    def barrier(self) -> None:
        if self.alone:
            return
        with self.phases("waiting"):
            if self._meeting is not None:
                self._meeting.wait()
            else:
                dist.all_reduce(self._token)  # half the time of dist.barrier under gloo

    def sum_few(self, values: list[float]) -> list[float]:
        """Sums over ranks of a few numbers, in float64; also a barrier."""
        if self._meeting is None:
            return self.sum(torch.tensor(values, dtype=torch.float64)).tolist()
        slots = self._slots[self._next_turn()]
        slots[self.ranks.rank, : len(values)] = torch.tensor(values, dtype=torch.float64)
        self.barrier()
        return slots[:, : len(values)].sum(0).tolist()

    def post(self, parcels: list[torch.Tensor]) -> list[list[torch.Tensor]] | None:
        """Show float32 parcels (n, w) to all ranks of a single machine, without a copy: result[rank][parcel].

        None, on all ranks alike, where that is not possible. Every rank posts the same number of parcels and must be
        done with the views before its next post.
        """
        if self._meeting is None:
            return None
        boxes = self._mail[self._next_turn()]
        mine = boxes[self.ranks.rank]
        header = torch.tensor([size for parcel in parcels for size in parcel.shape], dtype=torch.int32)
        fits = len(header) + 1 + sum(parcel.numel() for parcel in parcels) <= len(mine)
        mine[0] = float(fits)
        if fits:
            mine[1 : len(header) + 1] = header.view(torch.float32)
            place = len(header) + 1
            for parcel in parcels:
                mine[place : place + parcel.numel()] = parcel.reshape(-1)
                place += parcel.numel()
        self.barrier()
        if not bool((boxes[:, 0] == 1).all()):
            return None
        return [_unpack(box, len(parcels)) for box in boxes]

    def average_gradients(self, head: HeadGradients, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """DDP's communication hook: the mean over ranks, all buckets at once when the last has come."""
        future = head.add(bucket)
        if bucket.is_last():
            self._average(head.flat)
            head.deliver()
        return future

    def _average(self, gradient: torch.Tensor) -> None:
        """The mean over ranks, in place: added up in rank order, through shared memory where possible."""
        boxes = self.post([gradient[None]]) if gradient.dtype == torch.float32 and gradient.device.type == "cpu" else None
        if boxes is None:
            with self.phases("exchange"), self.traffic["head gradients"].crossing(self._ring_bytes(gradient)):
                dist.all_reduce(gradient)
        else:
            torch.sum(torch.cat([box[0] for box in boxes]), 0, out=gradient)
        gradient.div_(self.ranks.world_size)

    def _next_turn(self) -> int:
        """Two buffers in turn: who writes to one again has passed the barrier after the other, so all have read it."""
        self._turn = 1 - self._turn
        return self._turn

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place; also a barrier."""
        if not self.alone:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's values, in place."""
        if not self.alone:
            dist.broadcast(tensor, src=0)
        return tensor

    def share(self, value: Any) -> Any:
        """Rank 0's value, which JSON can hold, on every rank."""
        if self.alone:
            return value
        payload = torch.tensor(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = self.broadcast(torch.tensor([len(payload)]))
        if not self.ranks.leads:
            payload = torch.empty(int(length), dtype=torch.uint8)
        return json.loads(bytes(self.broadcast(payload).tolist()))

    def gather_values(self, value: Any) -> list[Any]:
        """Every rank's value, which JSON can hold, in rank order, on every rank."""
        if self.alone:
            return [value]
        payload = torch.tensor(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = self._sizes(len(payload))
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(payload)] = payload
        received = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(received, padded)
        return [json.loads(bytes(part[:size].tolist())) for part, size in zip(received, sizes, strict=True)]

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor | None:
        """Every rank's rows one after another on rank 0, None elsewhere. rows: (n_r, ...), n_r may differ."""
        if self.alone:
            return rows
        sizes = self._sizes(len(rows))
        padded = torch.zeros((max(sizes), *rows.shape[1:]), dtype=rows.dtype)
        padded[: len(rows)] = rows
        received = [torch.empty_like(padded) for _ in sizes] if self.ranks.leads else None
        dist.gather(padded, received, dst=0)
        if received is None:
            return None
        return torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])

    def take_traffic(self) -> dict[str, Traffic]:
        """Traffic since the last call: bytes of all ranks, seconds of the mean rank. COLLECTIVE. {} on one machine."""
        if self.ranks.num_machines == 1:
            return {}
        parts = self.gather_values({name: [cost.num_bytes, cost.seconds] for name, cost in self.traffic.items()})
        for cost in self.traffic.values():  # kept: others hold them
            cost.num_bytes, cost.seconds = 0, 0.0
        total = {name: Traffic() for part in parts for name in part}
        for part in parts:
            for name, (num_bytes, seconds) in part.items():
                total[name].num_bytes += num_bytes
                total[name].seconds += seconds / len(parts)
        return total

    def exchange(
        self, rows: torch.Tensor, send_counts: torch.Tensor, *, purpose: str = "start-up"
    ) -> tuple[torch.Tensor, list[int]]:
        """Send rows to ranks: the first send_counts[0] go to rank 0, the next to rank 1, ...

        rows: (n, ...); send_counts: int64 (world_size,), sum n. Returns the rows received, in rank order, and how
        many came from each rank.
        """
        if self.alone:
            return rows, [len(rows)]
        receive = torch.empty_like(send_counts)
        dist.all_to_all_single(receive, send_counts)
        counts = receive.tolist()
        return self.exchange_known(rows, send_counts.tolist(), counts, purpose=purpose), counts

    def exchange_known(
        self, rows: torch.Tensor, send_counts: list[int], receive_counts: list[int], *, purpose: str
    ) -> torch.Tensor:
        """As `exchange`, where every rank already knows how many rows come from each rank."""
        if self.alone:
            return rows
        out = torch.empty((sum(receive_counts), *rows.shape[1:]), dtype=rows.dtype)
        ranks = self.ranks
        remote = sum(count for rank, count in enumerate(send_counts) if rank // ranks.local_world_size != ranks.machine)
        with self.phases("exchange"), self.traffic[purpose].crossing(remote * rows[:1].nbytes):
            dist.all_to_all_single(out, rows.contiguous(), receive_counts, send_counts)
        return out

    def _ring_bytes(self, tensor: torch.Tensor) -> int:
        """What this rank sends to another machine when gloo adds up `tensor` around a ring of all ranks."""
        ranks = self.ranks
        crosses = ranks.num_machines > 1 and ranks.local_rank == ranks.local_world_size - 1
        return 2 * (ranks.world_size - 1) * tensor.nbytes // ranks.world_size if crosses else 0

    def _sizes(self, size: int) -> list[int]:
        mine = torch.tensor([size])
        received = [torch.empty_like(mine) for _ in range(self.ranks.world_size)]
        dist.all_gather(received, mine)
        return [int(part) for part in received]


def _unpack(box: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Views of the parcels in one rank's mailbox."""
    shapes = box[1 : 2 * count + 1].view(torch.int32).view(count, 2).tolist()
    views, place = [], 2 * count + 1
    for rows, width in shapes:
        views.append(box[place : place + rows * width].view(rows, width))
        place += rows * width
    return views
