"""Lines of the log that an administrator acts on: they say what, where and why, and in time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import ConfigurationError, RetryableError, Unavailable
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy
from coffre.cluster.membership import ClusterMaps, VerifiedMap
from coffre.cluster.transport import Transport
from coffre.node.following import CertificateWatch, MapFollower, MapHolder, note_end, read_last_end
from coffre.node.memory import MemoryStore
from coffre.node.repair.asking import Asking
from coffre.node.store import StoreIdentity
from coffre.proto import coffre_pb2 as pb

NODE = MapNode(1, "a1", "127.0.0.1:7400", "alpha", "rennes", "ovh", "FR", 1 << 40)
MAP = ClusterMap("test", 1, 16, (NODE,), (Policy("1-1", 1, 1, ("FR",), Domain.NODE),), "1-1")
DAY_SECONDS = 86_400
DAY_MS = DAY_SECONDS * 1000


def said(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) | {"event": record.getMessage()} for record in caplog.records]


def test_a_certificate_that_ends_while_the_node_runs_is_told_before_and_after(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = ManualClock()
    now_ms = clock.unixtime_ms()
    watch = CertificateWatch(
        "a1", {"certificate": now_ms + 40 * DAY_MS, "authority": now_ms + 4000 * DAY_MS}, clock
    )
    for _ in range(43 * 24):
        watch.look()
        clock.advance(3600)
    lines = said(caplog)
    assert [round(line["days_left"]) for line in lines] == [30, 14, 7, 3, 2, 1, 0, -1, -2]
    assert {line["certificate"] for line in lines} == {"certificate"}
    assert [line["levelname"] for line in lines] == ["WARNING"] * 6 + ["ERROR"] * 3
    assert "coffre pki request --renew" in lines[0]["event"]
    assert "has expired" in lines[-1]["event"]


class NoFolder:
    """Has one newer map, which cannot be kept."""

    async def watch(self) -> AsyncGenerator[VerifiedMap]:
        newer = ClusterMap("test", 2, 16, (NODE,), MAP.policies, "1-1")
        yield VerifiedMap(newer, b"signed")


async def test_a_map_that_cannot_be_kept_is_told_with_path_and_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def keep(_: bytes) -> None:
        raise ConfigurationError("cannot write into /srv/disk1: Read-only file system")

    clock, maps = ManualClock(), MapHolder(MAP, b"")
    follower = MapFollower(maps, cast(ClusterMaps, NoFolder()), keep, clock, own=NODE)
    running = asyncio.create_task(follower.run())
    while not caplog.records:  # noqa: ASYNC110 - a line of the log is not awaited
        await asyncio.sleep(0)
    running.cancel()
    (line,) = said(caplog)
    assert (line["event"], line["levelname"]) == ("cannot follow the map", "ERROR")
    assert line["reason"] == "cannot write into /srv/disk1: Read-only file system"


class Silent:
    """Nobody answers."""

    async def digests(self, node: int, request: pb.DigestsRequest, timeout: float) -> pb.DigestsReply:
        raise Unavailable("the connection was refused")


async def test_peers_are_named_by_their_ids(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    identity = StoreIdentity(bytes(16), 1)
    names = {2: "a2", 3: "b1"}
    asking = Asking(cast(Transport, Silent()), 1, 1.0, ManualClock(), identity, names.__getitem__)
    assert await asking.digests([2, 3]) == {}
    assert [(line["peer"], line["reason"]) for line in said(caplog)] == [
        ("a2", "the connection was refused"),
        ("b1", "the connection was refused"),
    ]


async def ended_in_order(store: MemoryStore) -> bool:
    reply = pb.StatusReply()
    (await read_last_end(store))(reply)
    return reply.ended_in_order


async def test_an_end_in_order_is_known_once() -> None:
    store = MemoryStore(ManualClock())
    assert not await ended_in_order(store)
    await note_end(store)
    assert await ended_in_order(store)
    assert not await ended_in_order(store)  # the process that has read it did not end in order


class Full(MemoryStore):
    async def keep_note(self, title: str, note: bytes, *, sync: bool = False) -> None:
        raise RetryableError("the disk is full")


async def test_a_disk_that_takes_nothing_hinders_no_end() -> None:
    await note_end(Full(ManualClock()))
