"""Nodes of tests are killed and started again: nobody may have been given their ports meanwhile."""

from __future__ import annotations

import socket
from pathlib import Path

from coffre.dev.local_cluster import free_ports

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_ports_of_nodes_are_given_to_nobody_else() -> None:
    lowest, highest = map(int, RANGE.read_text().split())
    ports = free_ports(200)
    assert len(set(ports)) == 200
    assert all(1024 <= port < lowest or port > highest for port in ports)
    with socket.create_server(("127.0.0.1", ports[0])):
        assert ports[0] not in free_ports(200)
