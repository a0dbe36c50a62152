"""Where a node listens: what cannot be is refused, what the map does not say is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from coffre.cluster.errors import ConfigurationError
from coffre.node.config import load_node_config
from coffre.node.listening import elsewhere

NODE_TOML = """\
listen = "{listen}"
data = "data"
map = "cluster.map"

[tls]
authority = "ca.crt"
certificate = "a1.crt"
key = "a1.key"
"""


@pytest.mark.parametrize(
    "listen",
    [
        "10.0.1.1",
        "10.0.1.1:",
        ":7400",
        "10.0.1.1:0",
        "10.0.1.1:70000",
        "10.0.1.1:http",
        "::1",
        "::1:7400",
        "",
    ],
)
def test_a_listen_without_a_port_is_refused(tmp_path: Path, listen: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(NODE_TOML.format(listen=listen))
    with pytest.raises(ConfigurationError, match="is not host:port"):
        load_node_config(path)


@pytest.mark.parametrize(
    "listen", ["10.0.1.1:7400", "0.0.0.0:7400", "[::]:7400", "a1.example:7400", "[2001:db8::1]:7400"]
)
def test_host_and_port_are_taken(tmp_path: Path, listen: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(NODE_TOML.format(listen=listen))
    assert load_node_config(path).listen == listen


@pytest.mark.parametrize(
    ("listen", "address", "what"),
    [
        ("10.0.1.1:7400", "10.0.1.1:7400", ""),
        ("0.0.0.0:7400", "10.0.1.1:7400", ""),
        ("[::]:7400", "a1.example:7400", ""),
        ("10.0.1.1:7400", "a1.example:7400", ""),
        ("[2001:db8::1]:7400", "[2001:db8:0::1]:7400", ""),
        ("127.0.0.1:7400", "127.0.0.1:7400", ""),
        ("10.0.1.1:7401", "10.0.1.1:7400", "another port"),
        ("0.0.0.0:7401", "10.0.1.1:7400", "another port"),
        ("127.0.0.1:7400", "10.0.1.1:7400", "loopback"),
        ("localhost:7400", "a1.example:7400", "loopback"),
        ("10.0.1.2:7400", "10.0.1.1:7400", "another address"),
    ],
)
def test_another_place_than_the_maps_is_told_with_both(listen: str, address: str, what: str) -> None:
    said = elsewhere(listen, address)
    assert bool(said) is bool(what)
    if what:
        assert what in said
        assert listen in said
        assert address in said
