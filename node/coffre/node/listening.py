"""Where a node listens, and whether it is where the map sends everybody. Pure functions."""

from __future__ import annotations

import ipaddress

from coffre.cluster.errors import ConfigurationError

__all__ = ["check_listen", "elsewhere"]

PORT_MAX = 65535


def _split(address: str) -> tuple[str, int | None]:
    """Host and port; the port is None when there is none that can be."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) <= PORT_MAX:
        return address, None
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        return address, None  # an IPv6 address without a port, or without its brackets
    return host.strip("[]"), int(port)


def check_listen(listen: str) -> None:
    """Raise `ConfigurationError` unless it is host:port; gRPC would take another port in silence."""
    host, port = _split(listen)
    if port is None or not host:
        raise ConfigurationError(
            f'listen = "{listen}" is not host:port, such as "10.0.1.1:7400", "0.0.0.0:7400" or "[::]:7400"'
        )


def elsewhere(listen: str, address: str) -> str:
    """Why others may not reach, at the map's `address`, a node that listens there; empty when they should.

    Something may stand between that carries one to the other, so this is no error.
    """
    (host, port), (mapped_host, mapped_port) = _split(listen), _split(address)
    if port != mapped_port:
        what = "another port"
    elif _is_loopback(host) and not _is_loopback(mapped_host):
        what = "loopback, which no other machine reaches"
    elif _is_specific(host) and _is_specific(mapped_host) and _address(host) != _address(mapped_host):
        what = "another address"
    else:
        return ""
    return (
        f"it listens on {listen}, and the map sends everybody to {address}: {what}. Unless something carries one to "
        "the other, nobody reaches it: correct listen in node.toml"
    )


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None  # a name


def _is_loopback(host: str) -> bool:
    found = _address(host)
    return host == "localhost" if found is None else found.is_loopback


def _is_specific(host: str) -> bool:
    """Whether it is one address of one machine, not a name and not all of them."""
    found = _address(host)
    return found is not None and not found.is_unspecified
