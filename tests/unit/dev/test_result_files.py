"""Results and reports: files appear whole, links are followed, and /dev/null stays what it is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from coffre.cluster.errors import ConfigurationError
from coffre.dev.files import check_writable, write_whole


def test_a_report_is_written_into_what_is_no_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    check_writable(pipe)
    write_whole(pipe, "report")
    assert os.read(reader, 100) == b"report"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    (tmp_path / "null").symlink_to("/dev/null")
    check_writable(tmp_path / "null")
    write_whole(tmp_path / "null", "report")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["null", "pipe"]


def test_a_link_to_a_report_is_followed(tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to("results/today")
    check_writable(tmp_path / "latest")
    write_whole(tmp_path / "latest", "one")
    write_whole(tmp_path / "latest", "two")
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "results" / "today").read_text() == "two"
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["today"]
    with pytest.raises(ConfigurationError, match="cannot be written"):
        check_writable(tmp_path)
