"""The references, in a very short form: plausible figures, mutual TLS in earnest, no process left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import Mock

import grpc
import pytest
import uvloop
from click.testing import CliRunner
from coffre.bench import references
from coffre.bench.references import ReferenceServer, reference_server
from coffre.bench.result import Measurement
from coffre.cluster.errors import IntegrityError, InternalError, InvalidArgument

from tests.patience import PATIENCE_SECONDS

MIB = 1 << 20


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_every_grpc_reference_gives_a_plausible_figure_and_leaves_no_process() -> None:
    async def measure() -> tuple[int, dict[str, Measurement]]:
        async with reference_server() as server:
            found = [
                await references.grpc_unary("grpc_unary_4k", server, duration_s=0.3, warmup_s=0.1),
                await references.grpc_unary("grpc_unary_4k_reply", server, duration_s=0.3, warmup_s=0.1),
                await references.grpc_unary("grpc_unary_4k_c1", server, duration_s=0.2, warmup_s=0.1),
                await references.grpc_unary("grpc_unary_64k", server, duration_s=0.2, warmup_s=0.1),
                await references.grpc_stream_1m(server, size_bytes=8 * MIB),
                await references.grpc_stream_1m_reply(server, size_bytes=8 * MIB),
                await references.grpc_gather_1m((server, server), size_bytes=8 * MIB),
            ]
            return server.pid, {one.id: one for one in found}

    pid, found = uvloop.run(measure())
    assert gone(pid)
    units = {name: one.unit for name, one in found.items()}
    assert units == {
        "grpc_unary_4k": "calls/s",
        "grpc_unary_4k_reply": "calls/s",
        "grpc_unary_4k_c1": "s",
        "grpc_unary_64k": "s",
        "grpc_stream_1m": "bytes/s",
        "grpc_stream_1m_reply": "bytes/s",
        "grpc_gather_1m": "bytes/s",
    }
    for one in found.values():
        low, high = {"calls/s": (20, 1e6), "s": (1e-6, 1), "bytes/s": (1e6, 1e11)}[one.unit]
        assert low < one.value < high, one
        assert "mutual TLS" in one.detail
        assert "uvloop" in one.detail


def test_disk_references_sync_what_they_write_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = os.fdatasync

    def watched(handle: int) -> None:
        sizes.append(os.fstat(handle).st_size)
        real(handle)

    monkeypatch.setattr(os, "fdatasync", watched)
    write = references.disk_write_sync(tmp_path, size_bytes=4 * MIB)
    assert sizes == [4 * MIB]
    assert (write.id, write.unit) == ("disk_write_sync", "bytes/s")
    assert 1e5 < write.value < 1e11
    sizes.clear()
    median, rate = references.disk_append_sync_4k(tmp_path, duration_s=0.1)
    assert sizes == [4096 * number for number in range(1, len(sizes) + 1)]
    assert (median.id, median.unit) == ("disk_append_sync_4k", "s")
    assert (rate.id, rate.unit) == ("disk_append_sync_4k_rate", "syncs/s")
    assert 0 < median.value < 10
    assert 0.1 < rate.value < 1e7
    assert list(tmp_path.iterdir()) == []


def test_what_stays_in_cache_gives_plausible_figures() -> None:
    found = {one.id: one for one in references.in_cache(rounds=3)}
    assert {one.unit for one in found.values()} == {"bytes/s"}
    assert list(found) == ["memcpy", "aes_gcm", "isal_encode_4_2"]
    assert all(1e7 < one.value < 1e12 for one in found.values())


def test_calls_count_only_inside_the_window() -> None:
    """A call of 100 ms, warm-up 150 ms, window 500 ms: each caller ends 5 of its calls inside, not 7."""

    pace_seconds = 0.1

    async def slow() -> bytes:
        await asyncio.sleep(pace_seconds)
        return b""

    rate = asyncio.run(references._call_rate(slow, 0.5, 0.15, 4))
    assert 0 < rate * 0.5 <= 4 * 5


def test_a_client_without_a_certificate_is_refused(tmp_path: Path) -> None:
    references._write_certificates(tmp_path)
    assert (tmp_path / "client.key").stat().st_mode & 0o077 == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "coffre.bench.references", "serve", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = json.loads(process.stdout.readline())["port"]
        anonymous = grpc.ssl_channel_credentials((tmp_path / "ca.crt").read_bytes())
        options = [("grpc.ssl_target_name_override", references.SERVER_NAME)]
        with grpc.secure_channel(f"127.0.0.1:{port}", anonymous, options=options) as channel:
            put: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                "/coffre.bench.Reference/Put"
            )
            with pytest.raises(grpc.RpcError) as refused:
                put(b"x", timeout=10)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        process.stdin.close()
        process.stdout.close()
        assert process.wait(PATIENCE_SECONDS) == 0


def test_the_server_ends_and_no_key_stays_when_the_client_is_killed(tmp_path: Path) -> None:
    script = (
        "import asyncio\n"
        "from coffre.bench.references import reference_server\n"
        "async def main():\n"
        "    async with reference_server() as server:\n"
        "        print(server.pid, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    client = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert client.stdout is not None
    pid = int(client.stdout.readline())
    handle = os.pidfd_open(pid)
    client.send_signal(signal.SIGKILL)
    client.wait()
    client.stdout.close()

    async def ended() -> None:
        done = asyncio.Event()
        asyncio.get_running_loop().add_reader(handle, done.set)
        await asyncio.wait_for(done.wait(), 10)

    try:
        asyncio.run(ended())
    finally:
        os.close(handle)
    assert list(tmp_path.iterdir()) == []


async def test_a_server_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "_write_certificates", lambda directory: None)
    with pytest.raises(InternalError, match=r"reference server ended with status 1: .*cannot read"):
        async with reference_server():
            pass


async def test_bytes_lost_on_the_way_spoil_no_figure() -> None:
    async def upload(requests: AsyncIterator[bytes]) -> bytes:
        return (sum([len(request) async for request in requests]) - 1).to_bytes(8, "big")

    async def download(request: bytes) -> AsyncIterator[bytes]:
        yield bytes(MIB)

    lossy: ReferenceServer = Mock(upload=upload, download=download)
    with pytest.raises(IntegrityError, match="bytes arrived"):
        await references.grpc_stream_1m(lossy, size_bytes=2 * MIB)
    with pytest.raises(IntegrityError, match="bytes arrived"):
        await references.grpc_stream_1m_reply(lossy, size_bytes=2 * MIB)
    with pytest.raises(IntegrityError, match="2097152 bytes arrived where 4194304 were sent"):
        await references.grpc_gather_1m((lossy, lossy), size_bytes=2 * MIB)


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="whole number of MiB"):
        references.disk_write_sync(tmp_path, size_bytes=MIB + 1)
    ended = CliRunner().invoke(references.main, ["measure", str(tmp_path / "absent")])
    assert ended.exit_code == 2
    assert "does not exist" in ended.stderr
