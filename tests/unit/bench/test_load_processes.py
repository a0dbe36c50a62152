"""Client processes that fail say why, and the proxy delays answers, and only those."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest
from coffre.bench.load.failure import DelayProxy
from coffre.bench.load.session import fleet
from coffre.bench.processes import ENDING_S, cpu_s
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import ConfigurationError, InternalError

from tests.unit.bench.load_results import PLAN


def ignore(_: object) -> None:
    pass


def children() -> set[int]:
    """Processes that this one has started and that have not been waited for."""
    found: set[int] = set()
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has ended meanwhile
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


async def test_a_command_that_fails_is_one_error_of_one_process(tmp_path: Path) -> None:
    before = children()
    async with fleet(tmp_path / "no.toml", PLAN) as clients:
        with pytest.raises(ConfigurationError, match=r"client process \d: cannot read"):
            await clients.command({"do": "fill"}, ignore)
    assert children() == before


async def test_a_process_that_is_killed_is_an_error(tmp_path: Path) -> None:
    before = children()
    async with fleet(tmp_path / "no.toml", replace(PLAN, processes=1)) as clients:
        (pid,) = children() - before
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(InternalError, match="client process 0 ended with status -9"):
            await clients.command({"do": "fill"}, ignore)
    assert children() == before


async def test_processes_end_with_the_run(tmp_path: Path) -> None:
    before = children()
    async with fleet(tmp_path / "no.toml", PLAN):
        assert len(children() - before) == PLAN.processes
        begun = monotonic()
    assert children() == before
    assert monotonic() - begun < ENDING_S  # by themselves, and not because they were killed


def test_cpu_seconds_grow_with_work_and_are_none_of_nobody() -> None:
    before = cpu_s(os.getpid())
    assert before > 0
    spent = os.times()
    while os.times().user - spent.user < 0.05:
        sum(range(10_000))
    assert cpu_s(os.getpid()) > before
    assert cpu_s(2**22 + 1) == 0.0  # beyond any pid of Linux


# ---------------------------------------------------------------- the proxy


@asynccontextmanager
async def echo() -> AsyncIterator[str]:
    """A server that says what it hears."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def free_address() -> str:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"127.0.0.1:{port}"


async def connected(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = address.split(":")
    return await asyncio.open_connection(host, int(port))


async def test_the_proxy_carries_bytes_and_delays_answers_when_told_to() -> None:
    listen = await free_address()
    async with echo() as upstream, DelayProxy(listen, upstream, SystemClock()) as proxy:
        reader, writer = await connected(listen)
        data = os.urandom(3 << 20)
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        proxy.delay_s = 0.2
        begun = monotonic()
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        assert monotonic() - begun >= 0.2
        proxy.delay_s = 0.0
        writer.write(b"pong")
        assert await reader.readexactly(4) == b"pong"
        writer.close()


async def test_a_delay_does_not_lower_the_rate() -> None:
    """Chunks are under way together: 40 of them, 50 ms late, take nowhere near 2 s."""
    listen = await free_address()
    async with echo() as upstream, DelayProxy(listen, upstream, SystemClock()) as proxy:
        proxy.delay_s = 0.05
        reader, writer = await connected(listen)
        begun = monotonic()
        writer.write(bytes(40 << 16))
        await reader.readexactly(40 << 16)
        assert monotonic() - begun < 1.0
        writer.close()


async def test_a_dead_node_is_a_broken_connection() -> None:
    listen, nobody = await free_address(), await free_address()
    async with DelayProxy(listen, nobody, SystemClock()):
        reader, writer = await connected(listen)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()


async def test_the_end_of_the_node_ends_the_connection() -> None:
    listen = await free_address()

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    upstream = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, DelayProxy(listen, upstream, SystemClock()):
        reader, writer = await connected(listen)
        writer.write(b"x")
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
