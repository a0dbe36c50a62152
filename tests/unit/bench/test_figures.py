"""Figures: which there are, what counts as memory, and what a failed figure leaves behind."""

from __future__ import annotations

import io
import json
import mmap
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from coffre.bench.bench_cli import bench
from coffre.bench.codec import IsalMissing, measure_encode
from coffre.bench.figures import (
    FIGURES,
    QUICK,
    REPAIR,
    FigureOptions,
    Figures,
    _coding,
    _data_path,
    _nodes,
    measure_figures,
    targets_of,
)
from coffre.bench.figures._coding import Pipeline
from coffre.bench.figures._nodes import measure_memory
from coffre.bench.processes import anonymous_bytes, parse_rollup, run_probe
from coffre.bench.result import Bound, Measurement, Quantity, Row, Target, one_line
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import InternalError, Unavailable
from rich.console import Console

ROLLUP = """\
55f0a0c2e000-7ffd2b5e4000 ---p 00000000 00:00 0                          [rollup]
Rss:               20480 kB
Pss:               10240 kB
Pss_Anon:           3000 kB
Private_Dirty:      4100 kB
Anonymous:          4096 kB
Swap:                  8 kB
SwapPss:               4 kB
"""


def quiet() -> Console:
    return Console(file=io.StringIO())


def test_the_figures_and_their_targets_are_the_published_ones() -> None:
    assert targets_of(FIGURES) == {
        "encode_4_2_vs_zfec": Target(Bound.AT_LEAST, 10),
        "encode_4_2_vs_isal": Target(Bound.AT_LEAST, 0.8),
        "encode_8_3_vs_zfec": Target(Bound.AT_LEAST, 10),
        "encode_8_3_vs_isal": Target(Bound.AT_LEAST, 0.8),
        "encode_10_4_vs_zfec": Target(Bound.AT_LEAST, 10),
        "encode_10_4_vs_isal": Target(Bound.AT_LEAST, 0.8),
        "encode_4_2_1m_vs_isal": Target(Bound.AT_LEAST, 1),
        "encode_4_2_64k_vs_isal": Target(Bound.AT_LEAST, 1),
        "encode_8_3_1m_vs_isal": Target(Bound.AT_LEAST, 1),
        "encode_8_3_64k_vs_isal": Target(Bound.AT_LEAST, 1),
        "encode_10_4_1m_vs_isal": Target(Bound.AT_LEAST, 1),
        "encode_10_4_64k_vs_isal": Target(Bound.AT_LEAST, 1),
        "encode_16_4_1m_vs_isal": Target(Bound.AT_LEAST, 1),
        "encode_16_4_64k_vs_isal": Target(Bound.AT_LEAST, 1),
        "pipeline_4_2": Target(Bound.AT_LEAST, 0.45),
        "put_4k_c64": Target(Bound.AT_LEAST, 0.5),
        "put_4k_c1_latency": Target(Bound.AT_MOST, 4),
        "get_4k_c64": Target(Bound.AT_LEAST, 0.6),
        "put_many_fhir": Target(Bound.AT_LEAST, 1.5),
        "get_many_fhir": Target(Bound.AT_LEAST, 2),
        "put_256m": Target(Bound.AT_LEAST, 0.7),
        "put_256m_vs_grpc": Target(Bound.AT_LEAST, 0.35),
        "get_256m": Target(Bound.AT_LEAST, 0.7),
        "range_64k_latency": Target(Bound.AT_MOST, 4),
        "get_p99_paused_node": Target(Bound.AT_MOST, 3),
        "client_memory_1g": Target(Bound.AT_MOST, 1),
        "node_memory_1g": Target(Bound.AT_MOST, 1),
        "disk_per_fhir_record": Target(Bound.AT_MOST, 2.6),
        "list_1000_of_1m": Target(Bound.AT_LEAST, 0.8, also=Target(Bound.AT_LEAST, 10, Quantity.VALUE)),
        "index_bytes_10m": Target(Bound.AT_MOST, 1),
        "index_start_10m": Target(Bound.AT_MOST, 1),
        "index_lookup_p99_10m": Target(Bound.AT_MOST, 1),
    }
    assert targets_of(REPAIR) == {
        "rebuild_large": Target(Bound.AT_LEAST, 0.4),
        "rebuild_large_ceiling": None,
        "rebuild_small": Target(Bound.AT_LEAST, 1),
        "get_p99_during_repair": Target(Bound.AT_MOST, 2.5),
        "join_moved": Target(Bound.AT_MOST, 1.1),
        "idle_anti_entropy_cpu": Target(Bound.AT_MOST, 1),
    }


# -------------------------------------------------------------------- memory


def test_anonymous_memory_counts_swapped_or_not_and_files_do_not() -> None:
    assert parse_rollup(ROLLUP) == (4096 + 8) * 1024
    with pytest.raises(InternalError):
        parse_rollup("Rss: 1 kB\n")


def test_a_mapped_file_is_not_memory_and_a_written_buffer_is(tmp_path: Path) -> None:
    path, size_bytes = tmp_path / "mapped", 32 << 20
    path.write_bytes(random.Random(1).randbytes(size_bytes))
    before = anonymous_bytes(os.getpid())
    assert before is not None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[start] for start in range(0, size_bytes, 4096)) > 0
        with_file = anonymous_bytes(os.getpid())
        assert with_file is not None
        assert with_file - before < size_bytes // 4
    buffer = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buffer.write(b"x" * size_bytes)
    with_buffer = anonymous_bytes(os.getpid())
    buffer.close()
    assert with_buffer is not None
    assert with_buffer - before >= size_bytes


@pytest.fixture
def ended_pid() -> int:
    """Of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_a_process_that_is_gone_has_no_memory(ended_pid: int) -> None:
    assert anonymous_bytes(ended_pid) is None


async def test_a_probe_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match=r"client\.toml"):
        await measure_memory(tmp_path / "client.toml", {}, size_bytes=1, seed=1)


async def test_a_node_that_ends_meanwhile_makes_the_figure_void(tmp_path: Path, ended_pid: int) -> None:
    with pytest.raises(Unavailable, match="node 3"):
        await measure_memory(tmp_path / "client.toml", {3: ended_pid}, size_bytes=1, seed=1)


# -------------------------------------------------------------------- the run


async def test_a_figure_that_fails_does_not_keep_the_others_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ISA-L, which may be missing on a user's machine, there is no figure beside it."""

    def without_isal_for_8_3(k: int, m: int, *rest: int, with_zfec: bool) -> object:
        if k == 8:
            raise IsalMissing("install it")
        return measure_encode(k, m, *rest, with_zfec=with_zfec)

    monkeypatch.setattr(_coding, "measure_encode", without_isal_for_8_3)
    wanted = ["encode_4_2_vs_isal", "encode_8_3_vs_isal", "encode_8_3_vs_zfec"]
    found = await measure_figures(FigureOptions(tmp_path, wanted, QUICK), SystemClock(), quiet())
    assert [row.id for row in found.rows] == ["encode_4_2_vs_isal"]
    assert found.failures == {"encode_8_3_vs_isal": "install it", "encode_8_3_vs_zfec": "install it"}


async def test_an_error_that_nobody_foresaw_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(_coding, "measure_encode", broken)
    with pytest.raises(ZeroDivisionError):
        await measure_figures(FigureOptions(tmp_path, ["encode_4_2_vs_isal"]), SystemClock(), quiet())


async def test_clusters_that_cannot_start_are_failures_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: object, numbers: object = None) -> None:
        raise Unavailable("node-1 ended by itself")

    monkeypatch.setattr("coffre.dev.local_cluster.LocalCluster.start", refuse)
    wanted = ["put_4k_c64", "node_memory_1g"]
    found = await measure_figures(FigureOptions(tmp_path, wanted, QUICK), SystemClock(), quiet())
    assert not found.rows
    assert found.failures == dict.fromkeys(wanted, "node-1 ended by itself")
    assert not list(tmp_path.iterdir())


async def test_a_directory_with_something_else_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "cluster" / "precious"
    precious.parent.mkdir()
    precious.touch()
    found = await measure_figures(FigureOptions(tmp_path, ["put_4k_c64"], QUICK), SystemClock(), quiet())
    assert "not empty" in found.failures["put_4k_c64"]
    assert precious.exists()


def test_missed_targets_are_known() -> None:
    good = Row("put_4k_c64", 3.0, "puts/s", 10.0, "grpc_unary_4k", 0.3)
    bad = Row("get_4k_c64", 3.0, "gets/s", 10.0, "grpc_unary_4k_reply", 0.3)
    targets: dict[str, Target | None] = {
        name: Target(Bound.AT_LEAST, limit) for name, limit in (("put_4k_c64", 0.25), ("get_4k_c64", 0.35))
    }
    assert Figures([good, bad]).missed(targets) == ["get_4k_c64"]


def test_a_large_put_is_held_against_the_slower_of_wire_and_disk() -> None:
    wire = Measurement("grpc_stream_1m", 900.0, "bytes/s", "")
    slow_disk = Measurement("disk_write_sync", 300.0, "bytes/s", "")
    fast_disk = Measurement("disk_write_sync", 1200.0, "bytes/s", "")
    assert _data_path._ceiling((wire, slow_disk)).value == 200.0
    assert _data_path._ceiling((wire, fast_disk)).value == 600.0
    assert _data_path._ceiling((wire, slow_disk)).id == _data_path._ceiling((wire, fast_disk)).id


async def test_one_measurement_of_a_scheme_makes_all_its_rows(tmp_path: Path) -> None:
    wanted = ["encode_16_4_64k_vs_isal", "encode_4_2_1m_vs_isal", "encode_4_2_vs_isal"]
    shown = io.StringIO()
    options, console = FigureOptions(tmp_path, wanted, QUICK), Console(file=shown)
    rows = {row.id: row for row in (await measure_figures(options, SystemClock(), console)).rows}
    assert sorted(rows) == sorted(wanted)
    assert all(f"  {one_line(row)}\n" in shown.getvalue() for row in rows.values())
    assert rows["encode_4_2_vs_isal"].ratio == rows["encode_4_2_1m_vs_isal"].ratio
    assert rows["encode_4_2_1m_vs_isal"].reference_id == "isal_encode_4_2_1m"


async def test_an_index_probe_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no directory")
    with pytest.raises(InternalError, match=r"index probe ended with status \d: coffre: the data directory"):
        await run_probe("index", "fill", str(tmp_path / "data"), "10", told=lambda found: None)


async def test_the_index_is_what_a_node_keeps_beside_its_shards(tmp_path: Path) -> None:
    for name, size_bytes in (
        ("index/data.mdb", 8192),
        ("volumes/0", 40960),
        ("large/00/1", 4096),
        ("other", 4096),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(random.Random(1).randbytes(size_bytes))
    assert _nodes._index_bytes(tmp_path) == 8192 + 4096


async def test_the_pipeline_is_measured_on_one_core_and_leaves_the_others_to_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores: list[set[int]] = []

    def watched(half: Callable[[Pipeline], float]) -> Callable[[Pipeline], float]:
        def measure(self: Pipeline) -> float:
            cores.append(os.sched_getaffinity(0))
            return half(self)

        return measure

    monkeypatch.setattr(Pipeline, "code", watched(Pipeline.code))
    monkeypatch.setattr(Pipeline, "encrypt", watched(Pipeline.encrypt))
    before = os.sched_getaffinity(0)
    options = FigureOptions(tmp_path, ["pipeline_4_2"], QUICK)
    (row,) = (await measure_figures(options, SystemClock(), quiet())).rows
    assert (row.id, row.unit, row.reference_id) == ("pipeline_4_2", "bytes/s", "aes_gcm")
    assert row.ratio is not None
    assert 0 < row.ratio < 1  # it encrypts as well, and more
    assert len(cores) == 2
    assert cores[0] == cores[1]
    assert len(cores[0]) == 1
    assert os.sched_getaffinity(0) == before


# -------------------------------------------------------------------- the command


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.chdir(tmp_path)
    return CliRunner()


def test_the_command_writes_what_it_measured_and_cleans_up(runner: CliRunner, tmp_path: Path) -> None:
    ended = runner.invoke(bench, ["figures", "--only", "encode_4_2_vs_isal", "--seed", "7"])
    assert ended.exit_code == 0, ended.output
    written = json.loads((tmp_path / "bench/results/latest.json").read_text())
    assert written["seed"] == 7
    (row,) = written["rows"]
    assert row["id"] == "encode_4_2_vs_isal"
    assert row["reference_id"] == "isal_encode_4_2"
    assert row["ratio"] > 0
    assert row["value"] > 1e8
    assert not (tmp_path / ".coffre-bench").exists()


def test_a_quick_run_does_not_replace_the_figures(runner: CliRunner, tmp_path: Path) -> None:
    ended = runner.invoke(bench, ["figures", "--only", "encode_4_2_vs_isal", "--quick"])
    assert ended.exit_code == 0, ended.output
    assert "no figures" in ended.output
    assert not list(tmp_path.iterdir())


def test_a_missed_target_is_said_and_is_no_failure(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Row("encode_4_2_vs_isal", 1.0, "bytes/s", 10.0, "isal_encode_4_2", 0.1)

    async def measured(*arguments: object) -> Figures:
        return Figures([slow])

    monkeypatch.setattr("coffre.bench.bench_cli.measure_figures", measured)
    ended = runner.invoke(bench, ["figures", "--only", "encode_4_2_vs_isal", "--quick"])
    assert ended.exit_code == 0
    assert "targets not reached: encode_4_2_vs_isal" in ended.output


def test_what_could_not_be_measured_is_said_and_is_a_failure(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failed(*arguments: object) -> Figures:
        return Figures(failures={"put_256m": "[disk] full"})

    monkeypatch.setattr("coffre.bench.bench_cli.measure_figures", failed)
    ended = runner.invoke(bench, ["figures", "--only", "put_256m", "--quick"])
    assert ended.exit_code == 1
    assert "not measured: put_256m: [disk] full" in ended.output


def test_an_unknown_figure_is_refused(runner: CliRunner) -> None:
    ended = runner.invoke(bench, ["figures", "--only", "put_4k"])
    assert ended.exit_code == 2
    assert "put_4k_c64" in ended.output
