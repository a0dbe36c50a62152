"""Files that are there whole or not at all: what is replaced keeps its place and its mode."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from coffre.cluster._files import create_file, replace_file
from coffre.cluster.errors import AlreadyExists, ConfigurationError


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_link_to_a_map_stays_a_link(tmp_path: Path) -> None:
    """As configuration management makes them."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "map").write_bytes(b"old")
    (tmp_path / "map").symlink_to("etc/map")
    replace_file(tmp_path / "map", b"new")
    assert (tmp_path / "map").is_symlink()
    assert (tmp_path / "etc" / "map").read_bytes() == b"new"
    assert entries(tmp_path / "etc") == ["map"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_what_is_replaced_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    (tmp_path / "map").write_bytes(b"old")
    (tmp_path / "map").chmod(mode)
    replace_file(tmp_path / "map", b"new")
    assert stat.S_IMODE((tmp_path / "map").stat().st_mode) == mode


def test_what_is_new_has_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    replace_file(tmp_path / "a" / "map", b"new", 0o640)
    assert stat.S_IMODE((tmp_path / "a" / "map").stat().st_mode) == 0o640
    replace_file(tmp_path / ("n" * 255), b"as long as names get")
    with pytest.raises(ConfigurationError, match="cannot write"):
        replace_file(tmp_path, b"a folder")


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "key").write_bytes(b"old")
    for name in ("dangling", "key"):
        with pytest.raises(AlreadyExists):
            create_file(tmp_path / name, b"new")
    assert (tmp_path / "key").read_bytes() == b"old"
    assert entries(tmp_path) == ["dangling", "key"]
