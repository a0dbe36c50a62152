"""Coordination on real processes: races through several clients, maps that are pushed, outages, and its loss."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from coffre.client import AsyncClient, ClientOptions, ObjectInfo, connect
from coffre.cluster.clock import SystemClock
from coffre.cluster.coordination import Put, RemoteCoordination, alive_nodes, newest_map, publish_map
from coffre.cluster.coordination.maps import map_of_epoch
from coffre.cluster.errors import (
    AlreadyExists,
    NotFound,
    PermissionDenied,
    RetryableError,
    StaleMap,
    Unavailable,
)
from coffre.cluster.identity import read_certificate
from coffre.cluster.map import ClusterMap, read_map, write_map
from coffre.cluster.membership import set_capacity
from coffre.cluster.transport import GrpcTransport
from coffre.dev.local_cluster import ClusterShape, LocalCluster
from coffre.proto import coffre_pb2 as pb

from tests.patience import PATIENCE_SECONDS

COFFRE = str(Path(sys.executable).with_name("coffre"))
PACE_SECONDS = 0.01  # between two looks at a state that nobody can be waited on for
OPTIONS = ClientOptions(patience=5.0)
PROCESSES, WRITERS = 4, 8
SHORT_ROUNDS = 6
WITHIN_SECONDS = 1.0


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    async with LocalCluster.create(tmp_path / "cluster", ClusterShape(k=2, m=1, nodes=3)) as running:
        yield running


@contextlib.asynccontextmanager
async def operator(cluster: LocalCluster) -> AsyncIterator[tuple[GrpcTransport, RemoteCoordination]]:
    transport = GrpcTransport(cluster.map, cluster.operator_tls())
    yield transport, RemoteCoordination(transport)
    await transport.close()


async def epochs(transport: GrpcTransport, numbers: tuple[int, ...]) -> set[int]:
    found = await asyncio.gather(*(transport.status(number, 2.0) for number in numbers))
    return {status.epoch for status in found}


async def publish(cluster: LocalCluster, coordination: RemoteCoordination, changed: ClusterMap) -> None:
    authority = read_certificate(cluster.directory / "pki" / "ca.crt")
    await publish_map(coordination, cluster.sign(changed), authority, SystemClock().unixtime_ms())


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Look again and again until it holds."""
    while not await holds():  # noqa: ASYNC110 - other processes set no events here
        await asyncio.sleep(PACE_SECONDS)


async def _all_at(transport: GrpcTransport, numbers: tuple[int, ...], epoch: int) -> bool:
    return await epochs(transport, numbers) == {epoch}


async def until_epoch(transport: GrpcTransport, numbers: tuple[int, ...], epoch: int) -> float:
    """Ask nodes until all serve at `epoch`; how many seconds it took."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await until(lambda: _all_at(transport, numbers, epoch))
    return loop.time() - begun


async def _client_at(client: AsyncClient, epoch: int) -> bool:
    return client.cluster_map.epoch == epoch


async def _said_so(log: Path) -> bool:
    return "cannot follow the map" in log.read_text()


async def _alive(coordination: RemoteCoordination) -> bool:
    return set(await alive_nodes(coordination)) == {1, 2, 3}


# -------------------------------------------------------------------- races


async def run_race(cluster: LocalCluster, rounds: int) -> None:
    """PROCESSES x WRITERS put one key create-only, round after round: exactly one wins in each."""
    script = Path(__file__).with_name("racing_writers.py")
    racers = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            str(script),
            str(cluster.client_config()),
            str(WRITERS),
            str(number),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for number in range(PROCESSES)
    ]
    client = await connect(cluster.client_config(), options=OPTIONS)
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert (await racer.stdout.readline()).strip() == b"ready"
        for turn in range(rounds):
            results = await asyncio.gather(*(_one_round(racer, f"key {turn}") for racer in racers))
            won = [version for result in results for version in result["won"]]
            lost = sum((Counter(result["lost"]) for result in results), Counter())
            assert len(won) == 1, f"round {turn}: {won}"
            assert lost == {"AlreadyExists": PROCESSES * WRITERS - 1}, f"round {turn}"
            assert (await client.head("race", f"key {turn}")).version == won[0]
    finally:
        await client.aclose()
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.close()
            await racer.wait()


async def _one_round(racer: asyncio.subprocess.Process, key: str) -> dict[str, dict[str, int]]:
    assert racer.stdin is not None
    assert racer.stdout is not None
    racer.stdin.write(key.encode() + b"\n")
    found: dict[str, dict[str, int]] = json.loads(await racer.stdout.readline())
    return found


async def test_of_32_writers_in_four_processes_exactly_one_wins(tmp_path: Path) -> None:
    async with LocalCluster.create(tmp_path / "cluster", ClusterShape()) as cluster:
        await run_race(cluster, SHORT_ROUNDS)


@pytest.mark.soak
async def test_of_32_writers_exactly_one_wins_in_every_round(tmp_path: Path) -> None:
    rounds = int(os.environ.get("COFFRE_RACE_ROUNDS", "500"))
    async with LocalCluster.create(tmp_path / "cluster", ClusterShape()) as cluster:
        await run_race(cluster, rounds)
        print(f"{rounds} rounds of {PROCESSES * WRITERS} writers in {PROCESSES} processes: one won in each")


# -------------------------------------------------------------------- maps


async def test_a_new_map_reaches_nodes_and_clients_within_a_second(cluster: LocalCluster) -> None:
    client = await connect(cluster.client_config(), options=OPTIONS)
    async with operator(cluster) as (transport, coordination):
        await client.put("b", "k", b"before")
        for epoch in (2, 3):
            changed = replace(cluster.map, epoch=epoch)
            await publish(cluster, coordination, changed)
            took = await until_epoch(transport, cluster.numbers, epoch)
            assert took < WITHIN_SECONDS
            async with asyncio.timeout(WITHIN_SECONDS - took):
                await until(partial(_client_at, client, epoch))
            await client.put("b", f"k{epoch}", b"after")
            assert await client.get("b", "k") == b"before"
            for number in cluster.numbers:  # in its own file before it was used
                held, _ = read_map(
                    cluster.config(number).with_name("cluster.map"), cluster.directory / "pki" / "ca.crt"
                )
                assert held.epoch == epoch
        assert (await newest_map(coordination)) is not None
        with pytest.raises(NotFound):
            await map_of_epoch(coordination, 1)  # it came with the files, and was never published
    await client.aclose()


async def test_a_client_with_an_old_map_learns_the_new_one_from_nodes(cluster: LocalCluster) -> None:
    async with operator(cluster) as (transport, coordination):
        await publish(cluster, coordination, replace(cluster.map, epoch=2))
        await until_epoch(transport, cluster.numbers, 2)
    cluster.kill(1)  # which serves coordination: nobody can be told
    client = await connect(cluster.client_config(), options=OPTIONS)
    assert client.cluster_map.epoch == 1
    with pytest.raises(RetryableError):
        await client.put("b", "k", b"two of three nodes")  # 2+1 needs three
    assert client.cluster_map.epoch == 2
    await cluster.start([1])
    await client.put("b", "k", b"x")
    assert await client.get("b", "k") == b"x"
    await client.aclose()


async def test_a_node_that_was_down_comes_back_with_its_map_and_takes_the_newest(
    cluster: LocalCluster,
) -> None:
    async with operator(cluster) as (transport, coordination):
        await publish(cluster, coordination, replace(cluster.map, epoch=2))
        await until_epoch(transport, cluster.numbers, 2)
        cluster.kill(3)
        await publish(cluster, coordination, replace(cluster.map, epoch=3))
        await until_epoch(transport, (1, 2), 3)
        cluster.kill(1)  # no coordination: node 3 begins with what it has
        await cluster.start([3])
        # It serves at once; node 2's status, or a request from a member at epoch 3, tells it that it is behind.
        assert (await transport.status(3, 2.0)).epoch in (2, 3)
        client = await connect(cluster.client_config(), options=OPTIONS)
        with contextlib.suppress(RetryableError, NotFound):
            await client.get("b", "k")
        assert client.cluster_map.epoch == 3
        with contextlib.suppress(RetryableError, NotFound):
            await client.get("b", "k")
        await until_epoch(transport, (2, 3), 3)
        await client.aclose()


async def test_a_map_that_no_operator_signed_changes_nothing(cluster: LocalCluster) -> None:
    async with operator(cluster) as (transport, coordination):
        signed = pb.SignedMap.FromString(cluster.sign(replace(cluster.map, epoch=2)))
        signed.signature = bytes(len(signed.signature))
        forged = signed.SerializeToString()
        await coordination.commit([], [Put(f"maps/epoch/{2:019}", forged), Put("maps/current", b"2")])
        await publish_nothing_and_look(transport, cluster)


async def publish_nothing_and_look(transport: GrpcTransport, cluster: LocalCluster) -> None:
    """Every node goes on at epoch 1 and has said that it met a map it does not believe."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        for number in cluster.numbers:
            await until(partial(_said_so, cluster.log(number)))
    assert await epochs(transport, cluster.numbers) == {1}


# -------------------------------------------------------------------- outages


async def test_without_coordination_plain_operations_go_on(tmp_path: Path) -> None:
    shape = ClusterShape(k=2, m=1, nodes=4, sites=1)
    async with LocalCluster.create(tmp_path / "cluster", shape) as cluster:
        client = await connect(cluster.client_config(), options=OPTIONS)
        info = await client.put("b", "k", b"one", if_absent=True)
        cluster.kill(1)
        await _plain_works(client)
        for conditional in (
            client.put("b", "new", b"x", if_absent=True),
            client.put("b", "k", b"x", if_version=info.version),
            client.delete("b", "k", if_version=info.version),
            client.create_bucket("bucket"),
        ):
            with pytest.raises(RetryableError) as caught:
                await conditional
            assert isinstance(caught.value, Unavailable)
        await cluster.start([1])
        await client.put("b", "new", b"x", if_absent=True)
        with pytest.raises(AlreadyExists):
            await client.put("b", "new", b"x", if_absent=True)
        await client.create_bucket("bucket")
        await client.aclose()


async def _plain_works(client: AsyncClient) -> None:
    for number in range(5):
        await client.put("b", f"plain {number}", b"x")
        assert await client.get("b", f"plain {number}") == b"x"
    await client.delete("b", "plain 0")
    listed = [entry.key async for entry in client.list("b") if isinstance(entry, ObjectInfo)]
    assert listed == ["k", "plain 1", "plain 2", "plain 3", "plain 4"]


async def test_what_was_agreed_survives_a_kill(cluster: LocalCluster) -> None:
    client = await connect(cluster.client_config(), options=OPTIONS)
    for number in range(20):
        await client.create_bucket(f"bucket-{number:02}")
    cluster.kill(1)
    await cluster.start([1])
    assert await client.list_buckets() == [f"bucket-{number:02}" for number in range(20)]
    await client.aclose()


async def test_nodes_say_that_they_are_alive(cluster: LocalCluster) -> None:
    async with operator(cluster) as (_, coordination), asyncio.timeout(PATIENCE_SECONDS):
        await until(lambda: _alive(coordination))


async def test_a_tenant_reaches_nothing_of_others(cluster: LocalCluster) -> None:
    pki = cluster.directory / "pki"
    tls = replace(cluster.operator_tls(), certificate=pki / "clinic.crt", key=pki / "clinic.key")
    transport = GrpcTransport(cluster.map, tls)
    coordination = RemoteCoordination(transport)
    for prefix in ("buckets/other/", "locks/other/", "tenants/", "nodes/", "repair/"):
        with pytest.raises(PermissionDenied):
            await coordination.range(prefix)
        with pytest.raises(PermissionDenied):
            await anext(coordination.watch(prefix, 0))
    with pytest.raises(PermissionDenied):
        await coordination.commit([], [Put("maps/current", b"9")])
    await transport.close()


# -------------------------------------------------------------------- the loss of it all


async def restore(cluster: LocalCluster) -> tuple[str, str]:
    """What `coffre cluster restore-coordination` prints, and prints of errors."""
    command = [COFFRE, "cluster", "restore-coordination", "--operator", str(cluster.operator_config())]
    pipe = asyncio.subprocess.PIPE
    restoring = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    said, failed = await restoring.communicate()
    assert bool(restoring.returncode) == bool(failed)
    return said.decode(), failed.decode()


async def lose_coordination(cluster: LocalCluster) -> None:
    """Its node has an empty store when it comes back."""
    cluster.kill(1)
    shutil.rmtree(cluster.config(1).with_name("coordination"))
    await cluster.start([1])


async def test_coordination_is_restored_from_the_nodes(cluster: LocalCluster) -> None:
    """The run-book of docs/operations.md, "Coordination is lost", as written."""
    async with operator(cluster) as (transport, coordination):
        for epoch in (2, 3):
            await publish(cluster, coordination, replace(cluster.map, epoch=epoch))
        await until_epoch(transport, cluster.numbers, 3)
    await lose_coordination(cluster)
    assert await restore(cluster) == ("epoch 3 is restored, the newest that 3 nodes keep\n", "")
    async with operator(cluster) as (transport, coordination):
        newest = await newest_map(coordination)
        assert newest is not None
        assert newest.epoch == 3
        await publish(cluster, coordination, replace(cluster.map, epoch=4))
        await until_epoch(transport, cluster.numbers, 4)
    _, failed = await restore(cluster)
    assert "nothing to restore" in failed  # it is not empty any more


async def test_a_map_that_only_the_operators_file_has_is_restored(cluster: LocalCluster) -> None:
    """Coordination was lost when it had said that the map is published, and before it had told any node."""
    async with operator(cluster) as (transport, coordination):
        await publish(cluster, coordination, replace(cluster.map, epoch=2))
        await until_epoch(transport, cluster.numbers, 2)
    await lose_coordination(cluster)
    last = replace(cluster.map, epoch=3)
    write_map(cluster.directory / "cluster.map", cluster.sign(last))
    async with await connect(cluster.client_config(), options=OPTIONS) as client:
        with pytest.raises(StaleMap):
            await client.put("b", "k", b"x")
    status = await asyncio.create_subprocess_exec(
        *(COFFRE, "cluster", "status", "--operator", str(cluster.operator_config())),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    shown = (await status.communicate())[0].decode()
    assert "epoch 3," in shown
    assert "only your file has the one of epoch 3" in " ".join(shown.split())
    said, failed = await restore(cluster)
    assert (said.startswith("epoch 3 is restored from"), failed) == (True, "")
    assert said.endswith("the newest that 3 nodes keep is 2\n")
    async with operator(cluster) as (transport, _):
        await until_epoch(transport, cluster.numbers, 3)
    async with await connect(cluster.client_config(), options=OPTIONS) as client:
        await client.put("b", "k", b"x")
        assert await client.get("b", "k") == b"x"


async def test_of_two_maps_of_one_epoch_none_is_restored(cluster: LocalCluster) -> None:
    """Another operator has published in the place of what only this one's file has."""
    async with operator(cluster) as (transport, coordination):
        await publish(cluster, coordination, replace(cluster.map, epoch=2))
        await until_epoch(transport, cluster.numbers, 2)
    await lose_coordination(cluster)
    other = set_capacity(cluster.map, cluster.map.nodes[0].node_id, 1 << 45)
    assert other.epoch == 2
    write_map(cluster.directory / "cluster.map", cluster.sign(other))
    said, failed = await restore(cluster)
    assert not said
    assert "two different cluster maps of epoch 2" in failed
    async with operator(cluster) as (_, coordination):
        assert await newest_map(coordination) is None


async def test_a_stolen_certificate_is_refused_at_once_and_after_a_restart(tmp_path: Path) -> None:
    """As the run-book says. Coordination is down when the nodes come back."""
    shape = ClusterShape(coordinators=(2,), tenants=("clinic", "other"))
    async with (
        LocalCluster.create(tmp_path / "cluster", shape) as cluster,
        await connect(cluster.client_config()) as client,
        await connect(cluster.client_config("other")) as other,
    ):
        await client.put("b", "k", b"x")
        await other.put("b", "k", b"y")
        with pytest.raises(AssertionError, match="nobody knows a tenant clinik; did you mean clinic"):
            tenants(cluster, "suspend", "clinik")
        assert tenants(cluster, "list") == ""
        assert tenants(cluster, "suspend", "clinic") == "clinic: 6 of 6 nodes refuse it\n"
        await until_refused(client)
        assert await other.get("b", "k") == b"y"
        assert tenants(cluster, "list") == "clinic  suspended\n"
        for number in range(1, 7):
            cluster.kill(number)
        await cluster.start(number for number in range(1, 7) if number != 2)
        async with await connect(cluster.client_config()) as thief:
            with pytest.raises(PermissionDenied, match="suspended"):
                await thief.get("b", "k")
        assert await other.get("b", "k") == b"y"
        await cluster.start([2])
        tenants(cluster, "suspend", "clinic", "--lift")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    assert await client.get("b", "k") == b"x"
                    break
                except PermissionDenied:
                    continue


def tenants(cluster: LocalCluster, *arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("coffre")), "cluster", "tenants", *arguments]
    command += ["--operator", str(cluster.operator_config())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def until_refused(client: AsyncClient) -> None:
    """Each node hears of it by itself; a read needs several."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                await client.get("b", "k")
            except PermissionDenied:
                return
