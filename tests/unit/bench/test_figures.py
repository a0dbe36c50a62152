"""Figures: which there are, when the clock stops, what counts as memory, and what a failed figure leaves behind."""

from __future__ import annotations

import asyncio
import io
import json
import mmap
import os
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from coffre.bench import figures
from coffre.bench._isal import IsalMissing
from coffre.bench._memory import anonymous_bytes, measure_memory, parse_rollup
from coffre.bench._workload import BLOCK_BYTES, Blocks, _check_piece, sustained_rate
from coffre.bench.bench_cli import bench
from coffre.bench.codec import measure_encode
from coffre.bench.figures import QUICK, TARGETS, FigureOptions, Figures, measure_figures
from coffre.bench.result import Bound, Row
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import IntegrityError, InternalError, Unavailable
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
    assert {name: (target.bound, target.limit) for name, target in TARGETS.items()} == {
        "encode_4_2_vs_zfec": (Bound.AT_LEAST, 10),
        "encode_4_2_vs_isal": (Bound.AT_LEAST, 0.8),
        "encode_8_3_vs_zfec": (Bound.AT_LEAST, 10),
        "encode_8_3_vs_isal": (Bound.AT_LEAST, 0.8),
        "encode_10_4_vs_zfec": (Bound.AT_LEAST, 10),
        "encode_10_4_vs_isal": (Bound.AT_LEAST, 0.8),
        "put_4k_c64": (Bound.AT_LEAST, 0.25),
        "get_4k_c64": (Bound.AT_LEAST, 0.35),
        "put_256m": (Bound.AT_LEAST, 0.35),
        "get_256m": (Bound.AT_LEAST, 0.35),
        "client_memory_1g": (Bound.AT_MOST, 1),
        "node_memory_1g": (Bound.AT_MOST, 1),
    }


# -------------------------------------------------------------------- the workload


async def test_what_operations_leave_behind_is_inside_the_measured_time() -> None:
    """The flush takes most of the time here: a clock that stops before it would show a far higher rate."""
    done: list[int] = []

    async def operation(number: int) -> None:
        done.append(number)
        await asyncio.sleep(0)

    async def flush() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.2)

    rate = await sustained_rate(operation, flush, callers=4, duration_s=0.01)
    assert sorted(done) == list(range(len(done)))
    assert rate < len(done) / 0.2


async def test_all_callers_are_busy_and_each_number_is_used_once() -> None:
    running = most = 0

    async def operation(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async def flush() -> None:
        assert running == 0

    assert await sustained_rate(operation, flush, callers=8, duration_s=0.005) > 0
    assert most == 8


async def test_one_failed_operation_fails_the_measurement_and_ends_the_others() -> None:
    ended = 0

    async def operation(number: int) -> None:
        nonlocal ended
        if number == 5:
            raise Unavailable("no")
        try:
            await asyncio.Event().wait()
        finally:
            ended += 1

    async def flush() -> None: ...

    with pytest.raises(Unavailable):
        await sustained_rate(operation, flush, callers=8, duration_s=60)
    assert ended == 7


async def test_payloads_come_from_the_seed_and_do_not_compress() -> None:
    one, same, other = Blocks(1), Blocks(1), Blocks(2)
    assert one.block(3) == same.block(3) != other.block(3)
    assert one.small(0) == one.block(0)[:4096]
    assert len({one.small(number) for number in range(2048)}) == 2048
    assert len({one.block(number) for number in range(16)}) == 16
    assert [piece async for piece in one.stream(17)][16] == one.block(0)


def test_a_large_object_that_comes_back_changed_is_noticed() -> None:
    blocks = Blocks(1)
    whole = blocks.block(0) + blocks.block(1)
    _check_piece(blocks, memoryview(whole)[100:], 100, len(whole))
    last = bytearray(whole)
    last[-1] ^= 1
    with pytest.raises(IntegrityError):
        _check_piece(blocks, memoryview(last), 0, len(whole))
    with pytest.raises(IntegrityError):
        _check_piece(blocks, whole, BLOCK_BYTES, 256)


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

    monkeypatch.setattr(figures, "measure_encode", without_isal_for_8_3)
    wanted = ["encode_4_2_vs_isal", "encode_8_3_vs_isal", "encode_8_3_vs_zfec"]
    found = await measure_figures(FigureOptions(tmp_path, wanted, QUICK), SystemClock(), quiet())
    assert [row.id for row in found.rows] == ["encode_4_2_vs_isal"]
    assert found.failures == {"encode_8_3_vs_isal": "install it", "encode_8_3_vs_zfec": "install it"}


async def test_an_error_that_nobody_foresaw_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(figures, "measure_encode", broken)
    with pytest.raises(ZeroDivisionError):
        await measure_figures(FigureOptions(tmp_path, ["encode_4_2_vs_isal"]), SystemClock(), quiet())


async def test_clusters_that_cannot_start_are_failures_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: object, numbers: object = None) -> None:
        raise Unavailable("node-1 ended by itself")

    monkeypatch.setattr("coffre.bench.local_cluster.LocalCluster.start", refuse)
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
    assert Figures([good, bad]).missed() == ["get_4k_c64"]


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
