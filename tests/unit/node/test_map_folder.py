"""A node that cannot keep newer maps says so when it starts, with the folder and what to do."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from coffre.cluster.map import MapNode
from coffre.node.config import load_node_config
from coffre.node.server import _look_around

NODE = MapNode(1, "a1", "10.0.1.1:7400", "alpha", "rennes", "ovh", "FR", 1 << 40)
NODE_TOML = """\
listen = "10.0.1.1:7400"
data = "data"
map = "maps/cluster.map"

[tls]
authority = "ca.crt"
certificate = "a1.crt"
key = "a1.key"
"""


@pytest.mark.parametrize("may_write", [True, False])
def test_a_map_folder_that_cannot_be_written_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, may_write: bool
) -> None:
    """Root may write anywhere, so the system is asked, and answers for another user here."""
    maps = tmp_path / "maps"
    maps.mkdir()
    (tmp_path / "node.toml").write_text(NODE_TOML)
    asked: list[tuple[Path, int]] = []

    def access(path: Path, mode: int) -> bool:
        asked.append((Path(path), mode))
        return may_write

    monkeypatch.setattr(os, "access", access)
    with caplog.at_level(logging.DEBUG, logger="coffre"):
        _look_around(load_node_config(tmp_path / "node.toml"), NODE)
    assert asked == [(maps, os.W_OK)]
    told = [record for record in caplog.records if record.getMessage() == "newer maps cannot be kept"]
    assert len(told) == (not may_write)
    for record in told:
        assert record.levelno == logging.ERROR
        assert record.__dict__["node"] == "a1"
        assert str(maps) in record.__dict__["reason"]
        assert "Let it write there, and restart it" in record.__dict__["reason"]


def test_a_map_folder_that_is_not_there_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "node.toml").write_text(NODE_TOML)
    _look_around(load_node_config(tmp_path / "node.toml"), NODE)
    assert [record.getMessage() for record in caplog.records] == ["newer maps cannot be kept"]
