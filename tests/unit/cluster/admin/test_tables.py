"""Tables at a terminal of some width, and in a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from coffre.cluster.admin import membership_cli
from coffre.cluster.admin.cli import cluster
from coffre.cluster.admin.membership_cli import _show_progress
from coffre.cluster.admin.operator_cli import _as_dict
from coffre.cluster.admin.tables import print_table
from coffre.cluster.errors import Unavailable
from coffre.cluster.identity import NodeAttributes, parse_certificate, parse_key
from coffre.cluster.map import ClusterMap, MapNode, Policy, create_map_file, sign_map
from coffre.cluster.membership import MoveProgress
from coffre.cluster.testing import make_members
from coffre.proto import coffre_pb2 as pb
from rich.console import Console
from rich.table import Table

ADDRESS = "a-server-with-a-long-name.strasbourg.example-hosting.fr:7311"


def table() -> Table:
    made = Table("node", "address", "say the others", "state [of it]")
    made.add_row("n1", ADDRESS, "slow [watch], by 3 of 5 :warning:", "active")
    made.add_row("n2", "[2001:db8::1]:7311", "", "\x1b[31mdraining")
    return made


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], str]]:
    """What is shown at a terminal of so many columns."""
    master, slave = os.openpty()

    def shown(columns: int) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        with open(slave, "w", closefd=False, encoding="utf-8") as stream:
            with monkeypatch.context() as patch:
                patch.setattr(sys, "stdout", stream)
                print_table(table())
            stream.flush()
        return os.read(master, 1 << 16).decode().replace("\r\n", "\n")

    yield shown
    os.close(slave)
    os.close(master)


def test_a_wide_terminal_gets_a_table(at: Callable[[int], str]) -> None:
    lines = at(200).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line for line in lines if ADDRESS in line and "slow [watch], by 3 of 5 :warning:" in line]


@pytest.mark.parametrize("columns", [40, 80])
def test_a_narrow_terminal_gets_a_record_on_several_lines(at: Callable[[int], str], columns: int) -> None:
    assert at(columns) == (
        "node n1\n"
        f"  address         {ADDRESS}\n"
        "  say the others  slow [watch], by 3 of 5 :warning:\n"
        "  state [of it]   active\n"
        "node n2\n"
        "  address         [2001:db8::1]:7311\n"
        "  state [of it]   ?[31mdraining\n"
    )


def test_a_pipe_gets_whole_values(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_table(table())
    shown = capsys.readouterr().out
    [line] = [line for line in shown.splitlines() if "n1" in line]
    assert ADDRESS in line
    assert "active" in line
    assert "\x1b" not in shown


def test_cluster_show_in_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [NodeAttributes(f"n{i}", f"server-of-a-long-name-{i}", f"site{i}", "op", "FR") for i in range(3)]
    members = make_members(tmp_path / "pki", "0123456789abcdef", nodes, ["clinic"], ["alice"])
    entries = tuple(
        MapNode(i, one.node_id, f"{i}-{ADDRESS}", one.server, one.site, one.operator, "FR", 1 << 30)
        for i, one in enumerate(nodes, 1)
    )
    found = ClusterMap("0123456789abcdef", 1, 16, entries, (Policy("2+1", 2, 1, ("FR",)),), "2+1")
    operator = members.issued["alice"]
    key = parse_key(operator.key, "alice")
    create_map_file(tmp_path / "map", sign_map(found, parse_certificate(operator.certificate, "alice"), key))
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(cluster, ["show", str(tmp_path / "map")]).stdout
    assert shown.count(ADDRESS) == 3
    for words in ("server-of-a-long-name-2", "operator cap", "with several operators", "country"):
        assert words in shown


def test_the_progress_of_a_move_stays_on_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(membership_cli, "Console", lambda stderr: Console(stderr=stderr, force_terminal=True))
    show = _show_progress()
    show(MoveProgress(2, 0, 4096, {}, (1, 2), 3600.0))
    show(MoveProgress(2, 4096, 4096, {}, (), 0.0))
    passing, last = capsys.readouterr().err.removeprefix("\r").split("\r")
    assert len(passing) == 39
    assert last == "epoch 2: 4096 of 4096 partitions moved (100.0%), 0 s left\n"


def test_repair_status_counts_partitions() -> None:
    answer = pb.RepairStatusReply(partitions=4096, moved=range(4096), moved_epoch=2)
    row = _as_dict(answer, verbose=False)
    assert "moved" not in row
    assert row["partitions_moved"] == 4096
    assert row["partitions"] == 4096
    assert len(str(row)) < 2000
    assert _as_dict(answer, verbose=True)["moved"] == list(range(4096))
    assert _as_dict(Unavailable("silent"), verbose=False) == {"error": "silent"}
