"""Peers by name and address: found, waited for with a limit, and refused where they do not fit this machine."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from bm3_dgl.errors import ConfigError, JobError
from bm3_dgl.runtime import addresses
from bm3_dgl.runtime.addresses import interface_of, own_address, resolve_all
from bm3_dgl.runtime.ranks import Ranks

SECOND_OF_TWO = Ranks(1, 2, 0, 1, 1, 2)


def test_one_machine_stays_on_loopback() -> None:
    assert own_address(Ranks(), [], resolve_seconds=1.0) == "127.0.0.1"


def test_names_and_literals() -> None:
    assert resolve_all(["localhost", "127.0.0.7"], 5.0) == ["127.0.0.1", "127.0.0.7"]
    assert interface_of("127.0.0.1") == "lo" and interface_of("203.0.113.9") is None


def test_an_unknown_name_ends_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(JobError, match=r"cluster\.peers\[1\]=nobody\.invalid: no IPv4 address in 1 s \(.+\); check the name"):
        resolve_all(["localhost", "nobody.invalid"], 1.0)
    assert time.monotonic() - began < 4.0


def test_a_hanging_resolver_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: threading.Event().wait())
    with pytest.raises(JobError, match="the resolver does not answer"):
        resolve_all(["slow"], 0.5)


def test_a_name_that_appears_late(monkeypatch: pytest.MonkeyPatch) -> None:
    known_from = time.monotonic() + 0.7

    def resolve(name: str, *_: object) -> list:
        if time.monotonic() < known_from:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.1.2.3", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert resolve_all(["late"], 10.0) == ["10.1.2.3"]


@pytest.mark.parametrize(
    "peers, found, message",
    [
        (["a"], ["10.0.0.1"], r"has 1 names, expected 2, one per machine"),
        (["a", "b"], ["10.0.0.1", "127.0.1.1"], r"cluster\.peers\[1\]=b: is 127\.0\.1\.1, which other machines cannot reach"),
        (["a", "b"], ["10.0.0.1", "10.0.0.1"], r"cluster\.peers\[1\]=b: is 10\.0\.0\.1, as is cluster\.peers\[0\]"),
        (
            ["a", "b"],
            ["10.0.0.1", "203.0.113.9"],
            r"is 203\.0\.113\.9, which is no address of this machine, whose --node_rank",
        ),
    ],
)
def test_refused(monkeypatch: pytest.MonkeyPatch, peers: list[str], found: list[str], message: str) -> None:
    monkeypatch.setattr(addresses, "resolve_all", lambda *_: found)
    with pytest.raises(ConfigError, match=message):
        own_address(SECOND_OF_TWO, peers, resolve_seconds=1.0)


def test_found_without_peers_but_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(ConfigError, match=r"MASTER_ADDR=localhost: is 127\.0\.0\.1 on this machine.*cluster\.peers"):
        own_address(SECOND_OF_TWO, [], resolve_seconds=1.0)
