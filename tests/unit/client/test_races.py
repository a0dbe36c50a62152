"""Writers, readers and deaths that race: every history must be one of a register (docs/consistency.md)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from coffre.client import AsyncClient
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import NotFound, Unavailable
from coffre.cluster.map import Placement
from coffre.cluster.names import ObjectName, partition_of
from coffre.dev.in_process import InProcessCluster, Network, Traffic
from coffre.node.store import RETRY_SECONDS, Lock
from coffre.node.store.votes import VOTES_KEPT
from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import ShardChunk

from tests.amounts import amount

MIB = 1 << 20
MakeCluster = Callable[..., InProcessCluster]


@dataclass(slots=True)
class History:
    """What happened to one key, in the order of one event loop. Versions order the values."""

    puts: dict[bytes, str] = field(default_factory=dict)  # value -> version, once acknowledged
    attempted: set[bytes] = field(default_factory=set)
    floor: str = ""  # the newest version that a put acknowledged or a read returned

    async def put(self, client: AsyncClient, key: str, value: bytes) -> None:
        self.attempted.add(value)
        info = await client.put("b", key, value)
        self.puts[value] = info.version
        self.floor = max(self.floor, info.version)

    async def read(self, client: AsyncClient, key: str) -> None:
        floor = self.floor
        try:
            before = await client.head("b", key)
            value = await client.get("b", key)
        except NotFound:
            assert not floor, "a completed put was un-seen"
            return
        assert value in self.attempted, "a value that nobody wrote"
        assert before.version >= floor, "older than what was returned before"
        self.floor = max(self.floor, before.version)
        if value in self.puts:
            assert self.puts[value] >= before.version, "get is older than the head before it"


async def jitter(rng: random.Random) -> None:
    for _ in range(rng.randrange(4)):
        await asyncio.sleep(0)


def shuffle_network(cluster: InProcessCluster, seed: int) -> None:
    """Requests and replies overtake each other."""
    rng = random.Random(seed)

    async def wait(node: int, message: Traffic) -> None:
        await jitter(rng)

    cluster.network.before = cluster.network.after = wait


async def test_two_writers_race_again_and_again(cluster: InProcessCluster) -> None:
    shuffle_network(cluster, 1)
    one, two = cluster.client(), cluster.client()
    for turn in range(amount(100, 500)):
        first, second = await asyncio.gather(
            one.put("b", "k", b"one %d" % turn), two.put("b", "k", b"two %d" % turn)
        )
        winner = b"one %d" % turn if first.version > second.version else b"two %d" % turn
        reader = (one, two)[turn % 2]
        assert await reader.get("b", "k") == winner
        assert (await reader.head("b", "k")).version == max(first.version, second.version)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("k", "m"), [(4, 2), (8, 3), (2, 1)])
async def test_readers_race_writers(make_cluster: MakeCluster, k: int, m: int, seed: int) -> None:
    cluster = make_cluster(k, m)
    shuffle_network(cluster, seed)
    rng = random.Random(seed)
    history = History()
    done = False

    async def write(client: AsyncClient, who: int) -> None:
        for turn in range(25):
            await history.put(client, "k", b"%d %d" % (who, turn))
            await jitter(rng)

    async def read(client: AsyncClient) -> None:
        while not done:
            await history.read(client, "k")
            await jitter(rng)

    readers = [asyncio.create_task(read(cluster.client())) for _ in range(3)]
    await asyncio.gather(*(write(cluster.client(), who) for who in range(3)))
    done = True
    await asyncio.gather(*readers)
    assert len(history.puts) == 75


@pytest.mark.parametrize("seed", range(2))
async def test_large_objects_race_too(cluster: InProcessCluster, seed: int) -> None:
    """Losers of a race keep their staged shards for the next stamp; readers of what was overwritten start again."""
    shuffle_network(cluster, seed)
    history = History()
    done = False

    async def write(client: AsyncClient, who: int) -> None:
        for turn in range(6):
            await history.put(client, "k", b"%d" % (10 * who + turn) * (MIB + 7))

    async def read(client: AsyncClient) -> None:
        while not done:
            await history.read(client, "k")

    readers = [asyncio.create_task(read(cluster.client())) for _ in range(2)]
    await asyncio.gather(*(write(cluster.client(), who) for who in range(3)))
    done = True
    await asyncio.gather(*readers)
    assert len(history.puts) == 18
    # What was overwritten before a node knew that it stood is given back there, and expires soon.
    soon_ms = SystemClock().unixtime_ms() + RETRY_SECONDS * 1000
    for store in cluster.stores.values():
        assert all(shard.expires_ms <= soon_ms for shard in store._staging)


async def test_a_stream_of_an_overwritten_object_says_so(cluster: InProcessCluster) -> None:
    client, other = cluster.client(), cluster.client()
    await client.put("b", "k", random.Random(9).randbytes(30 * MIB))
    pieces = client.get_stream("b", "k")
    await anext(pieces)
    await other.put("b", "k", b"short")
    await other.flush()

    async def cut(node: int, reply: Traffic) -> None:
        if isinstance(reply, ShardChunk):
            raise Unavailable("the connection broke")

    cluster.network.after = cut  # what streams now asks again, and finds the shards gone
    with pytest.raises(Unavailable, match="overwritten"):
        async for _ in pieces:
            pass
    assert await client.get("b", "k") == b"short"


async def test_lists_during_writes(cluster: InProcessCluster) -> None:
    """A list shows what was there from before it began to after it ended, and nothing that was gone all the while."""
    shuffle_network(cluster, 3)
    rng = random.Random(3)
    writer, lister = cluster.client(), cluster.client()
    keys = [f"{a}/{b}" for a in range(6) for b in range(8)]
    live: set[str] = set()
    touched: list[str] = []  # in the order in which changes began
    done = False
    lists = 0

    async def write() -> None:
        nonlocal done
        for turn in range(150):
            key = rng.choice(keys)
            touched.append(key)
            if key in live and rng.random() < 0.5:
                await writer.delete("b", key)
                live.discard(key)
            else:
                await writer.put("b", key, b"%d" % turn)
                live.add(key)
        done = True

    async def read() -> None:
        nonlocal lists
        while not done:
            before, begun = set(live), max(len(touched) - 1, 0)  # the last one may be under way
            seen = {entry.key async for entry in lister.list("b", page_size=7) if not isinstance(entry, str)}
            moving = set(touched[begun:])
            assert seen - moving == before - moving
            lists += 1

    await asyncio.gather(write(), read())
    assert lists > 3
    assert {entry.key async for entry in lister.list("b") if not isinstance(entry, str)} == live


# -------------------------------------------------------------------- writers that die


def doomed_network(messages: int, *, rng: random.Random) -> Network:
    """Delivers that many messages, in whatever order they come, and drops everything after; loses some answers."""
    network = Network()

    async def before(node: int, message: Traffic) -> None:
        await jitter(rng)
        if network.messages > messages:
            raise Unavailable("the writer is dead")

    async def after(node: int, message: Traffic) -> None:
        if rng.random() < 0.2:
            raise Unavailable("the answer is lost")

    network.before, network.after = before, after
    return network


async def agreed(cluster: InProcessCluster, key: str, allowed: set[bytes | None]) -> bytes | None:
    """What readers say, each with another node down, and fresh ones at the end: after the first answer, always that."""
    answers: list[bytes | None] = []
    for down in (*((node,) for node in cluster.stores), ()):
        cluster.network.down = set(down)
        reader = cluster.client()
        try:
            answers.append(await reader.get("b", key))
        except NotFound:
            answers.append(None)
        except Unavailable:
            assert down, "with every node up somebody must be able to tell"
            continue
        assert answers[-1] in allowed
    assert answers
    newest = answers[-1]
    # Monotonic: once the newer value was returned, nobody returns the older one. (The first readers may skip it.)
    assert answers == sorted(answers, key=lambda answer: answer == newest), answers
    return newest


@pytest.mark.parametrize("size", [40, MIB + 3])
@pytest.mark.parametrize(("k", "m"), [(4, 2), (8, 3), (2, 1)])
async def test_a_writer_that_dies_leaves_no_doubt(
    make_cluster: MakeCluster, k: int, m: int, size: int
) -> None:
    cluster = make_cluster(k, m)
    rng = random.Random(k * 1000 + size % 1000)
    steady = cluster.client()
    count = 2 * (k + m) + 2 if size < MIB else 4 * (k + m)
    seen: set[bytes | None] = set()
    for messages in range(0, count, 1 if size < MIB and k < 8 else 3):
        key = f"{messages}"
        old, new = b"old", bytes([65 + messages % 26]) * size
        await steady.put("b", key, old)
        await steady.flush()
        doomed = cluster.client(network=doomed_network(messages, rng=rng))
        acknowledged = True
        try:
            await doomed.put("b", key, new)
        except Unavailable:
            acknowledged = False
        answer = await agreed(cluster, key, {new} if acknowledged else {old, new})
        seen.add(answer if answer == b"old" else b"new")
        cluster.network.heal()
        # And the object goes on living.
        await steady.put("b", key, b"next")
        assert await cluster.client().get("b", key) == b"next"
    assert b"old" in seen


@pytest.mark.parametrize(("k", "m"), [(4, 2), (8, 3), (2, 1)])
async def test_a_delete_that_dies_leaves_no_doubt(make_cluster: MakeCluster, k: int, m: int) -> None:
    cluster = make_cluster(k, m)
    rng = random.Random(k)
    steady = cluster.client()
    seen: set[bytes | None] = set()
    for messages in range(0, 2 * (k + m), 1 if k < 8 else 2):
        key = f"{messages}"
        await steady.put("b", key, b"old")
        await steady.flush()
        doomed = cluster.client(network=doomed_network(messages, rng=rng))
        acknowledged = True
        try:
            await doomed.delete("b", key)
        except Unavailable:
            acknowledged = False
        seen.add(await agreed(cluster, key, {None} if acknowledged else {b"old", None}))
        cluster.network.heal()
    assert seen == {b"old", None}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("k", "m", "nodes"), [(4, 2, 6), (8, 3, 11), (2, 1, 3), (4, 2, 9)])
async def test_chaos_has_only_register_histories(
    make_cluster: MakeCluster, k: int, m: int, nodes: int, seed: int
) -> None:
    """Nodes come and go, answers get lost, writers race: every read that returns obeys the register."""
    cluster = make_cluster(k, m, nodes=nodes)
    rng = random.Random(100 * seed + nodes)
    history = History()
    done = False

    async def weather(node: int, message: Traffic) -> None:
        await jitter(rng)
        if rng.random() < 0.03:
            raise Unavailable("lost")

    async def storms() -> None:
        while not done:
            cluster.network.down = set(rng.sample(sorted(cluster.stores), rng.randrange(m + 1)))
            for _ in range(30):
                await asyncio.sleep(0)

    async def write(client: AsyncClient, who: int) -> None:
        for turn in range(20):
            try:
                await history.put(client, "k", b"%d %d" % (who, turn))
            except Unavailable:
                await jitter(rng)

    async def read(client: AsyncClient) -> None:
        while not done:
            try:
                await history.read(client, "k")
            except Unavailable:
                await jitter(rng)

    cluster.network.before = cluster.network.after = weather
    storm = asyncio.create_task(storms())
    readers = [asyncio.create_task(read(cluster.client())) for _ in range(3)]
    await asyncio.gather(*(write(cluster.client(), who) for who in range(3)))
    done = True
    await asyncio.gather(storm, *readers)
    cluster.network.heal()
    await history.read(cluster.client(), "k")
    assert history.puts


class Behind(SystemClock):
    """The wall clock of a machine that is a minute late."""

    def unixtime_ms(self) -> int:
        return super().unixtime_ms() - 60_000


async def test_a_writer_whose_clock_is_behind_is_refused_and_writes_above(make_cluster: MakeCluster) -> None:
    """Nodes keep few votes on versions that are gone, so of a stamp older than those they cannot say that it is none.

    They refused its Accept, which is enough, also when one says so late.
    """
    cluster = make_cluster(4, 2)
    writer, name = cluster.client(), ObjectName("clinic", "b", "k")
    partition = partition_of(name, cluster.cluster_map.partitions)
    for number in range(VOTES_KEPT + 1):
        info = await writer.put("b", "k", bytes([number]))
        stamp = bytes.fromhex(info.version)
        await asyncio.gather(*(s.apply([Lock(name, partition, stamp)]) for s in cluster.stores.values()))
        await writer.flush()
    slow = Placement(cluster.cluster_map, cluster.cluster_map.policy()).primaries(partition)[5]

    given_up = asyncio.Event()

    async def wait(node: int, message: Traffic) -> None:
        if isinstance(message, pb.BatchRequest) and message.operations:
            kind = message.operations[0].WhichOneof("operation")
            if kind == "abort":
                given_up.set()
            elif kind == "accept" and node == slow:
                await given_up.wait()

    cluster.network.before = wait
    late = cluster.client(clock=Behind())
    for value in (b"first", b"second"):
        await late.put("b", "k", value)
        assert await cluster.client().get("b", "k") == value
    await late.delete("b", "k")
    with pytest.raises(NotFound):
        await cluster.client().get("b", "k")
