"""The parts of a world: exchanges, processes that die, disks that forget."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from coffre.cluster.errors import CoffreError, DeadlineExceeded, NotFound, Unavailable
from coffre.proto import coffre_pb2 as pb

from tests.simulation.network import Quality
from tests.simulation.plan import draw_plan
from tests.simulation.segments import tiny_segments
from tests.simulation.virtual_time import VirtualLoop, run_virtually
from tests.simulation.world import World

_Result = TypeVar("_Result")


def in_calm(work: Callable[[World], Awaitable[_Result]]) -> _Result:
    """Run something in a world where nothing happens by itself."""
    plan = dataclasses.replace(draw_plan(1), quality=Quality(0.001), faults={}, drift=0.0, offset=0.0)

    async def main(loop: VirtualLoop) -> _Result:
        return await work(World(plan, loop))

    with tiny_segments():
        return run_virtually(main)


def test_a_silent_message_ends_the_exchange_for_all_others() -> None:
    async def work(world: World) -> list[CoffreError | pb.BatchReply]:
        member = world.member()
        transport = member.client._transport
        read = pb.Operation(read=pb.Read(bucket="records", key="k"))
        request = pb.BatchRequest(epoch=1, tenant="clinic", operations=[read])

        async def one(timeout: float) -> CoffreError | pb.BatchReply:
            try:
                return await transport.batch(1, request, timeout)
            except CoffreError as error:
                return error

        world.network.cut("node 1", member.name, 3.0)
        return list(await asyncio.gather(one(1.0), one(50.0)))

    first, second = in_calm(work)
    assert isinstance(first, DeadlineExceeded)
    assert type(second) is Unavailable


def test_what_a_dead_client_had_not_sent_is_never_sent() -> None:
    async def work(world: World) -> None:
        doomed, other = world.member(), world.member()
        await doomed.client.put("records", "k", b"old")
        task = doomed.actor.spawn(doomed.client.put("records", "k", b"new"))
        await asyncio.sleep(0)
        doomed.kill()
        with pytest.raises(asyncio.CancelledError):
            await task
        sent = len(world.journal.entries)
        await world.sleep(60)
        assert not [what for _, what in world.journal.entries[sent:] if what[0] == doomed.name]
        assert await other.client.get("records", "k") == b"old"

    in_calm(work)


def test_a_crash_of_every_node_loses_nothing_that_was_acknowledged() -> None:
    async def work(world: World) -> None:
        client = world.member().client
        await client.put("records", "small", b"value")
        await client.put("records", "large", bytes(5000))
        await client.delete("records", "gone")
        for host in world.hosts.values():
            host.crash()
        with pytest.raises(Unavailable):
            await world.member().client.get("records", "small")
        world.heal()
        await world.sleep(15)
        reader = world.member().client
        assert await reader.get("records", "small") == b"value"
        assert await reader.get("records", "large") == bytes(5000)
        with pytest.raises(NotFound):
            await reader.get("records", "gone")
        assert not world.failures

    in_calm(work)


def test_a_commit_is_whole_or_not_at_all() -> None:
    """A crash during the sync leaves nothing, and its caller hears of no success."""

    async def work(world: World) -> None:
        client = world.member().client
        putting = asyncio.ensure_future(client.put("records", "k", b"value"))
        await world.sleep(0.0011)  # the requests have arrived, and no disk is that quick
        for host in world.hosts.values():
            host.crash()
            assert not host.store.holdings()
        with pytest.raises(Unavailable):
            await putting

    in_calm(work)
