"""Where this machine's peers reach it: its own IPv4 address, from a list of peers or from the way to machine 0."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Sequence

from bm3_dgl.errors import ConfigError, JobError
from bm3_dgl.runtime.ranks import Ranks

LOOPBACK = "127.0.0.1"
_SIOCGIFADDR = 0x8915  # linux/sockios.h: the IPv4 address of an interface
_RETRY_SECONDS = 0.5


def own_address(ranks: Ranks, peers: Sequence[str], *, resolve_seconds: float) -> str:
    """The address at which this machine's servers listen; loopback where there is one machine.

    Raises ConfigError for peers that do not fit the job or this machine, JobError for names that nobody knows.
    """
    if peers and len(peers) != ranks.num_machines:
        raise ConfigError(f"cluster.peers: has {len(peers)} names, expected {ranks.num_machines}, one per machine")
    if ranks.num_machines == 1:
        return LOOPBACK
    if not peers:
        return _address_towards(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    addresses = resolve_all(peers, resolve_seconds)
    own = addresses[ranks.machine]
    for number, address in enumerate(addresses):
        if address.startswith("127."):
            raise ConfigError(f"cluster.peers[{number}]={peers[number]}: is {address}, which other machines cannot reach")
        if address in addresses[:number]:
            first = addresses.index(address)
            raise ConfigError(f"cluster.peers[{number}]={peers[number]}: is {address}, as is cluster.peers[{first}]")
    if not _is_own(own):
        raise ConfigError(
            f"cluster.peers[{ranks.machine}]={peers[ranks.machine]}: is {own}, which is no address of this machine, whose"
            f" --node_rank is {ranks.machine}; list the peers in the order of --node_rank"
        )
    return own


def resolve_all(names: Sequence[str], seconds: float) -> list[str]:
    """The IPv4 address of every name. A cluster may make its names known late, so each is asked for again and again.

    Raises JobError for the first name that is still unknown after `seconds`.
    """
    found: dict[int, str] = {}
    reasons: dict[int, str] = {}
    deadline = time.monotonic() + seconds

    def ask(number: int) -> None:
        while number not in found and time.monotonic() < deadline:
            try:
                found[number] = str(socket.getaddrinfo(names[number], None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
            except (OSError, UnicodeError) as error:
                reasons[number] = str(getattr(error, "strerror", None) or error)
                time.sleep(_RETRY_SECONDS)

    # Threads, since a resolver may itself wait for long; a hanging one is left behind.
    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()) + _RETRY_SECONDS)
    for number, name in enumerate(names):
        if number not in found:
            reason = reasons.get(number, "the resolver does not answer")
            raise JobError(
                f"cluster.peers[{number}]={name}: no IPv4 address in {seconds:.0f} s ({reason}); check the name, or"
                " raise cluster.resolve_seconds"
            )
    return [found[number] for number in range(len(names))]


def interface_of(address: str) -> str | None:
    """The network interface whose first IPv4 address this is; None where there is none such."""
    wanted = socket.inet_aton(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError as error:
                if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV):  # no IPv4, or just gone
                    continue
                raise
            if answer[20:24] == wanted:
                return name
    return None


def _is_own(address: str) -> bool:
    try:
        free_port(address)
    except OSError:
        return False
    return True


def free_port(address: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        return int(listener.getsockname()[1])


def _address_towards(host: str, port: int) -> str:
    """This machine's address on the way to machine 0."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # connects nothing, only picks the interface
        try:
            probe.connect((host, port))
        except OSError as error:
            raise JobError(f"MASTER_ADDR={host}: not reachable from this machine ({error.strerror or error})") from None
        address = str(probe.getsockname()[0])
    if address.startswith("127."):
        raise ConfigError(
            f"MASTER_ADDR={host}: is {address} on this machine, which other machines cannot reach; name the machines by"
            " addresses of their network in cluster.peers"
        )
    return address
