"""The network as a job needs it: a port for its ranks to meet on, and the interface that leads to another node."""

from __future__ import annotations

import random
import socket

import psutil

from infra.errors import StageError


def free_port() -> int:
    """A TCP port nobody listens on, from below the range systems give to outgoing connections."""
    chooser = random.SystemRandom()
    while True:
        port = chooser.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port


def interface_towards(host: str) -> str:
    """Name of the interface through which this machine reaches `host`, which may be itself. Sends nothing.

    Gloo would otherwise bind to whatever this machine's own name resolves to, often an address of the loopback
    interface, and give that one to the other nodes. Raises StageError if no interface leads there.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # for UDP: only chooses the route
            local = probe.getsockname()[0]
    except OSError as error:
        hint = "Check the address of node 0, and that this machine's interface to it is up."
        raise StageError(f"no way to {host}: {error.strerror or error}", where="master_addr", hint=hint) from error
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.family == family and each.address.partition("%")[0] == local for each in addresses):
            return name
    raise StageError(
        f"no interface has the address {local}, from which {host} would be reached",
        where="master_addr",
        hint="Set GLOO_SOCKET_IFNAME to the interface that joins the nodes.",
    )
