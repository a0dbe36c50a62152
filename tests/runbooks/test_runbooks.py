"""docs/operations.md, "What happens when": each event happens to real nodes; its run-book is executed as written."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from coffre.client import AsyncClient, ClientOptions, KeyRing, ObjectInfo, connect
from coffre.cluster.coordination import RemoteCoordination
from coffre.cluster.errors import AlreadyExists, NotFound, PermissionDenied, RetryableError, Unavailable
from coffre.cluster.identity import TlsFiles
from coffre.cluster.map import read_map
from coffre.cluster.transport import GrpcTransport
from coffre.proto import coffre_pb2 as pb

from tests.integration.etcd_cluster import EtcdCluster
from tests.nursery import Nursery
from tests.patience import PATIENCE_SECONDS
from tests.runbooks.book import OPERATIONS, Step, read_books
from tests.runbooks.machines import Machines

BOOKS = read_books(OPERATIONS.read_text("utf-8"))
OPTIONS = ClientOptions(timeout=3.0, patience=1.0, stall_timeout=3.0)
OBJECTS = 24
Make = Callable[..., Machines]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def make(tmp_path: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Machines whose nodes run, with options of `Machines`."""
    monkeypatch.setenv("COFFRE_KEYRING_PASSPHRASE", "correct horse")
    made: list[Machines] = []

    def start(**options: object) -> Machines:
        machines = Machines(tmp_path / "world", nursery, **options)  # type: ignore[arg-type]  # as they are named there
        made.append(machines)
        machines.start_all()
        return machines

    yield start
    for machines in made:
        machines.stop()


def client_of(machines: Machines) -> Path:
    return machines.office / "client.toml"


def values() -> dict[str, bytes]:
    noise = random.Random(5)
    return {f"record-{number}": noise.randbytes(20_000) for number in range(OBJECTS)}


async def write(machines: Machines) -> None:
    async with await connect(client_of(machines), options=OPTIONS) as client:
        for key, value in values().items():
            await client.put("records", key, value)
        await client.put("records", "doomed", b"x")


async def check(machines: Machines, *, whole: bool = True) -> None:
    """Everything can be read, every shard is where it should be, and what needs agreement goes on."""
    async with await connect(client_of(machines), options=OPTIONS) as client:
        await check_readable(client)
        if whole:
            for key in values():
                places = await client.locate("records", key)
                assert [place.state for place in places] == ["ok"] * 6, (key, places)
        await client.put("records", "new", b"x", if_absent=True)
        with pytest.raises(AlreadyExists):
            await client.put("records", "new", b"y", if_absent=True)


async def check_readable(client: AsyncClient) -> None:
    for key, value in values().items():
        assert await client.get("records", key) == value


async def follow(machines: Machines, title: str) -> None:
    await asyncio.to_thread(machines.follow, BOOKS[title])


def lose_disk(machines: Machines, host: str, disk: str) -> None:
    shutil.rmtree(machines.root / host / "srv" / disk)


# ------------------------------------------------------------------ the text


def test_every_run_book_is_tried_here() -> None:
    """A new one needs a test: its title stands in one of them."""
    own = Path(__file__).read_text("utf-8")
    assert len(BOOKS) >= 8
    assert [title for title in BOOKS if f'"{title}"' not in own] == []


def test_what_a_run_book_says_is_read() -> None:
    said = (
        "It prints `x` and `y`. More.",
        "Repeat it until it does not print `z`: so.",
        "It prints `p`, or `q`, say.",
    )
    text = "## What happens when\n\nWords.\n\n### One\n\nIt is so.\n\n    a b\n    c\n\n"
    text += f"{said[0]}\n\n    d\n\n{said[1]}\n\n    e\n\n{said[2]}\n\n## Next\n\n    no\n"
    one = read_books(text)["One"]
    assert one == (
        Step("a b"),
        Step("c", ("x", "y")),
        Step("d", ("z",), absent=True, repeated=True),
        Step("e", ("p", "q"), any_of=True),
    )
    assert [one[1].is_so("x"), one[1].is_so("yx"), one[2].is_so("z"), one[3].is_so("q")] == [
        False,
        True,
        False,
        True,
    ]


# ------------------------------------------------------------------ events


@pytest.mark.runbooks
async def test_a_node_dies(make: Make) -> None:
    machines = make()
    machines.end("a2")
    await write(machines)  # goes on
    await follow(machines, "A node dies")
    await check(machines)


@pytest.mark.runbooks
async def test_a_disk_dies(make: Make) -> None:
    machines = make()
    await write(machines)
    machines.end("a2")
    lose_disk(machines, "alpha", "disk2")
    await follow(machines, "A disk dies")
    await check(machines)


@pytest.mark.runbooks
async def test_a_disk_fails(make: Make) -> None:
    """Pages of the index are lost while the node runs: somebody meets them, and everybody is told."""
    machines = make()
    await write(machines)
    data = machines.root / "alpha" / "srv" / "disk2" / "coffre" / "index" / "data.mdb"
    with data.open("r+b") as file:
        for page in range(2, data.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(bytes(4096))
    async with await connect(client_of(machines), options=OPTIONS) as client:
        await check_readable(client)
        await client.put("records", "meanwhile", b"x")
    await follow(machines, "A disk fails")
    await check(machines)


@pytest.mark.runbooks
async def test_a_site_is_lost(make: Make) -> None:
    machines = make()
    await write(machines)
    for name in ("a1", "a2"):
        machines.end(name)
    shutil.rmtree(machines.root / "alpha")
    async with await connect(client_of(machines), options=OPTIONS) as client:
        await check_readable(client)
        with pytest.raises(Unavailable):
            await client.put("records", "refused", b"x")
        with pytest.raises(NotFound):
            await client.get("records", "refused")
        await client.delete("records", "doomed")
    await follow(machines, "A site is lost")
    await check(machines)


@pytest.mark.runbooks
async def test_a_certificate_expires(make: Make) -> None:
    machines = make(days=20)
    await write(machines)
    stolen = steal(machines)
    await follow(machines, "A certificate expires")
    await check(machines)
    await assert_refused(machines, stolen)


@pytest.mark.runbooks
async def test_a_node_was_compromised(make: Make) -> None:
    machines = make()
    await write(machines)
    stolen = steal(machines)
    assert await opened(machines, stolen)
    await follow(machines, "A node was compromised")
    await check(machines)
    await assert_refused(machines, stolen)


@pytest.mark.runbooks
async def test_a_tenant_was_compromised(make: Make) -> None:
    machines = make()
    await write(machines)
    *suspend, lift, over = BOOKS["A tenant was compromised"]
    await asyncio.to_thread(machines.follow, suspend)
    assert "--lift" in lift.command
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await is_open(machines):
            pass
    await asyncio.to_thread(machines.follow, (lift, over))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await is_open(machines):
            pass
    await check(machines)


@pytest.mark.runbooks
async def test_keys_are_rotated(make: Make) -> None:
    """At every step each host reads and lists what all of them have written."""
    machines = make()
    await write(machines)
    hosts = {"office": client_of(machines)} | {
        name: application_host(machines, name) for name in ("app1", "app2")
    }
    for number, step in enumerate(BOOKS["Keys are rotated"]):
        await asyncio.to_thread(machines.follow, (step,))
        for name, config in hosts.items():
            async with await connect(config, options=OPTIONS) as client:
                await client.put("records", f"{name}-{number}", b"x")
        for config in hosts.values():
            async with await connect(config, options=OPTIONS) as client:
                await check_readable(client)
                entries = [entry async for entry in client.list("records")]
                assert [
                    entry for entry in entries if isinstance(entry, ObjectInfo) and entry.unreadable
                ] == []
                for name in hosts:
                    assert await client.get("records", f"{name}-{number}") == b"x"
    rings = [KeyRing.load(config.parent / "keyring.json", b"correct horse") for config in hosts.values()]
    assert len({ring.current for ring in rings}) == 1
    assert all(len(ring.key_ids) == 2 for ring in rings)


def application_host(machines: Machines, name: str) -> Path:
    """The configuration of a machine of the tenant's, which has a copy of the key ring."""
    folder = machines.root / name / "etc/coffre/clinic"
    folder.mkdir(parents=True)
    shutil.copy(machines.office / "keyring.json", folder)
    text = client_of(machines).read_text()
    for word in ("cluster.map", "pki/"):
        text = text.replace(word, f"{machines.office}/{word}")
    (folder / "client.toml").write_text(text)
    return folder / "client.toml"


async def is_open(machines: Machines) -> bool:
    try:
        async with await connect(client_of(machines), options=OPTIONS) as client:
            await check_readable(client)
    except PermissionDenied:
        return False
    return True


@pytest.mark.runbooks
@pytest.mark.skipif(shutil.which("etcd") is None, reason="make test-runbooks installs etcd-server")
async def test_etcd_is_lost(make: Make, tmp_path: Path) -> None:
    etcd = EtcdCluster(tmp_path / "etcd")
    try:
        machines = make(coordinators=("a1", "b1"), etcd=etcd)
        await write(machines)
        etcd.stop()
        await follow(machines, "etcd is lost")
        await check(machines)
    finally:
        etcd.stop()


@pytest.mark.runbooks
async def test_coordination_is_lost_with_its_node(make: Make) -> None:
    machines = make(coordinators=("a1",))
    await write(machines)
    machines.end("a1")
    lose_disk(machines, "alpha", "disk1")
    await follow(machines, "Coordination is lost with its node")
    await check(machines, whole=False)


@pytest.mark.runbooks
async def test_two_nodes_have_a_coordination_store_each(make: Make) -> None:
    machines = make(coordinators=("a1", "b1"))
    await write(machines)
    await follow(machines, "Two nodes have a coordination store each")
    await check(machines)


@pytest.mark.runbooks
async def test_a_disk_fills(make: Make) -> None:
    machines = make(store="capacity_bytes = 12000000\nvolume_bytes = 1000000\n")
    await write(machines)
    async with await connect(client_of(machines), options=OPTIONS) as client:
        noise = random.Random(6)
        for number in range(80):
            await client.put("records", f"old/{number}", noise.randbytes(1_000_000))
    await follow(machines, "A disk fills")
    await check(machines, whole=False)


# ------------------------------------------------------------------ a stolen certificate


def steal(machines: Machines) -> TlsFiles:
    """A copy of a2's certificate and key."""
    pki, thief = machines.office / "pki", machines.root / "thief"
    thief.mkdir()
    for suffix in ("crt", "key"):
        shutil.copy(machines.root / "alpha/etc/coffre/a2" / f"a2.{suffix}", thief)
    return TlsFiles(pki / "ca.crt", thief / "a2.crt", thief / "a2.key")


async def opened(machines: Machines, files: TlsFiles) -> list[int]:
    """The nodes that let somebody with this certificate read rows, and coordination, over TLS of its own."""
    known, _ = read_map(machines.office / "cluster.map", files.authority)
    transport = GrpcTransport(known, files)
    found = []
    for node in known.nodes:
        try:
            await transport.digests(node.number, pb.DigestsRequest(epoch=known.epoch), 5.0)
            found.append(node.number)
        except (PermissionDenied, RetryableError):
            continue
    try:
        await RemoteCoordination(transport).range("nodes/")
        found.append(0)
    except PermissionDenied:
        pass
    await transport.close()
    return found


async def assert_refused(machines: Machines, files: TlsFiles) -> None:
    assert await opened(machines, files) == []
