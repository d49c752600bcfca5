"""What the ranks say to each other, typed. Every method of Team is COLLECTIVE: all ranks call it, in the same order.

A team of one needs no process group: debug mode and one rank run the same lines.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist

from bm3_dgl.runtime.ranks import Ranks


class Team:
    """The ranks of the job, over torch.distributed's default process group (CPU tensors)."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.alone = ranks.world_size == 1
        self._token = torch.zeros(1)

    def barrier(self) -> None:
        if not self.alone:
            dist.all_reduce(self._token)  # half the time of dist.barrier under gloo

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

    def exchange(self, rows: torch.Tensor, send_counts: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """Send rows to ranks: the first send_counts[0] go to rank 0, the next to rank 1, ...

        rows: (n, ...); send_counts: int64 (world_size,), sum n. Returns the rows received, in rank order, and how
        many came from each rank.
        """
        if self.alone:
            return rows, [len(rows)]
        receive = torch.empty_like(send_counts)
        dist.all_to_all_single(receive, send_counts)
        counts = receive.tolist()
        return self.exchange_known(rows, send_counts.tolist(), counts), counts

    def exchange_known(self, rows: torch.Tensor, send_counts: list[int], receive_counts: list[int]) -> torch.Tensor:
        """As `exchange`, where every rank already knows how many rows come from each rank."""
        if self.alone:
            return rows
        out = torch.empty((sum(receive_counts), *rows.shape[1:]), dtype=rows.dtype)
        dist.all_to_all_single(out, rows.contiguous(), receive_counts, send_counts)
        return out

    def _sizes(self, size: int) -> list[int]:
        mine = torch.tensor([size])
        received = [torch.empty_like(mine) for _ in range(self.ranks.world_size)]
        dist.all_gather(received, mine)
        return [int(part) for part in received]
