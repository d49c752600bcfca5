"""Neighbours drawn by another machine's graph server, from a seed that comes with the request.

DGL's servers draw from a generator of their own, which depends on who asked before; so a resumed run would draw
something else. Imported by servers and trainers alike, which registers the request with both.
"""

from __future__ import annotations

from typing import Any

import dgl
from dgl.distributed import graph_services, rpc

from bm3_dgl.runtime.random import derive

_SERVICE_ID = 916657  # DGL's own end at 6664


class SeededSampling(graph_services.SamplingRequest):
    """DGL's request with a seed; DGL makes one for each machine that owns some of the nodes."""

    next_seed = 0  # of the requests that are made next

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.seed = SeededSampling.next_seed

    def __getstate__(self) -> tuple:
        return (*super().__getstate__(), self.seed)

    def __setstate__(self, state: tuple) -> None:
        super().__setstate__(state[:-1])
        self.seed = state[-1]

    def process_request(self, server_state: Any) -> Any:
        dgl.seed(derive(self.seed, "server", server_state.partition_book.partid) % 2**31)
        return super().process_request(server_state)


rpc.register_service(_SERVICE_ID, SeededSampling, graph_services.SubgraphResponse)
graph_services.SamplingRequest = SeededSampling
