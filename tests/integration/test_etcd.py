"""Coordination in etcd: the contract suite on three real members, and on two after one was killed; then more."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from coffre.client import ClientOptions, ObjectInfo, connect
from coffre.cluster.coordination import Compare, Put
from coffre.cluster.coordination.etcd import EtcdCoordination
from coffre.cluster.errors import AlreadyExists, ConfigurationError, OutcomeUnknown, Unavailable
from coffre.dev.local_cluster import ClusterShape, LocalCluster

from tests.contract import test_coordination as contract
from tests.contract.coordination_stores import Store
from tests.integration.etcd_cluster import EtcdCluster
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.etcd

PACE_SECONDS = 0.5

# The whole contract suite, with the fixture `store` of this module.
for _name in dir(contract):
    if _name.startswith("test_") or _name == "coordination":
        globals()[_name] = getattr(contract, _name)


@pytest.fixture(scope="module", params=["three members", "one killed"])
def etcd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    members = EtcdCluster(tmp_path_factory.mktemp("etcd"))
    try:
        asyncio.run(_ready(members))
        if request.param == "one killed":
            members.kill(0)
            asyncio.run(_ready(members))  # another leader, if it was that
        yield members
    finally:
        members.stop()


async def _ready(members: EtcdCluster) -> None:
    store = EtcdCoordination(members.endpoints, members.tls, "ready", os.urandom)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                await store.commit([], [Put("ready", b"")])
                break
            except Unavailable:
                await asyncio.sleep(PACE_SECONDS)
    await store.close()


@pytest.fixture
async def store(etcd: EtcdCluster) -> AsyncIterator[Store]:
    opened = EtcdCoordination(etcd.endpoints, etcd.tls, os.urandom(8).hex(), os.urandom)
    yield Store(opened, None)
    await opened.close()


async def test_a_lease_that_is_renewed_stays(store: Store) -> None:
    lease = await store.coordination.grant(2)
    await store.coordination.commit([], [Put("test/a", b"", lease.number)])
    for _ in range(2 * lease.seconds * 2):
        await asyncio.sleep(PACE_SECONDS)
        await store.coordination.keep_alive(lease.number)
    assert await store.coordination.get("test/a") is not None


async def test_clusters_do_not_see_each_other(etcd: EtcdCluster, store: Store) -> None:
    other = EtcdCoordination(etcd.endpoints, etcd.tls, os.urandom(8).hex(), os.urandom)
    await store.coordination.commit([], [Put("test/a", b"mine")])
    assert await other.get("test/a") is None
    assert (await other.range("test/")).entries == ()
    await other.close()


async def test_only_with_a_certificate(etcd: EtcdCluster, tmp_path: Path) -> None:
    strangers = EtcdCluster.__new__(EtcdCluster)
    strangers._directory = tmp_path
    from tests.integration.etcd_cluster import _make_certificates

    _make_certificates(tmp_path)
    mine = replace(strangers.tls, authority=etcd.tls.authority)
    store = EtcdCoordination(etcd.endpoints, mine, "x", os.urandom)
    with pytest.raises(Unavailable):
        await store.get("test/a")
    await store.close()
    with pytest.raises(ConfigurationError):
        EtcdCoordination((), etcd.tls, "x", os.urandom)


async def test_a_member_is_killed_under_load(tmp_path: Path) -> None:
    """Of commits that raced with the death, each that was confirmed is there, and none was done twice."""
    members = EtcdCluster(tmp_path / "etcd")
    try:
        await _ready(members)
        stores = [EtcdCoordination(members.endpoints, members.tls, "load", os.urandom) for _ in range(3)]
        confirmed, unknown = set[str](), set[str]()
        stop = False

        async def write(who: int) -> None:
            stores[who]._turn = who  # one begins with each member
            number = 0
            while not stop:
                key = f"test/{who}/{number:06}"
                number += 1
                try:
                    done = await stores[who].commit([Compare(key, 0)], [Put(key, b"")])
                    assert done.succeeded
                    confirmed.add(key)
                except OutcomeUnknown:
                    unknown.add(key)
                except Unavailable:
                    await asyncio.sleep(PACE_SECONDS)

        writers = [asyncio.create_task(write(who)) for who in range(3)]
        await asyncio.sleep(PACE_SECONDS)
        members.kill(1)
        before = len(confirmed)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(confirmed) < before + 300:  # noqa: ASYNC110 - a count, not a state
                await asyncio.sleep(PACE_SECONDS)
        stop = True
        await asyncio.gather(*writers)
        held, after, more = set[str](), "", True
        while more:
            page = await stores[0].range("test/", after=after)
            held |= {entry.key for entry in page.entries}
            more, after = page.more, page.entries[-1].key
        assert confirmed <= held <= confirmed | unknown
        for each in stores:
            await each.close()
    finally:
        members.stop()


async def test_a_cluster_whose_coordination_is_etcd(tmp_path: Path) -> None:
    """Two nodes serve it; a member of etcd and one of the nodes die, conditional writes go on."""
    members = EtcdCluster(tmp_path / "etcd")
    try:
        await _ready(members)
        shape = ClusterShape(k=2, m=1, nodes=4, sites=1, coordinators=(1, 2))
        cluster = LocalCluster.create(tmp_path / "cluster", shape)
        for number in shape.coordinators:
            _use_etcd(cluster.config(number), members)
        async with cluster:
            client = await connect(cluster.client_config(), options=ClientOptions(patience=5.0))
            await client.put("b", "k", b"one", if_absent=True)
            members.kill(2)
            cluster.kill(1)
            with pytest.raises(AlreadyExists):
                await client.put("b", "k", b"two", if_absent=True)
            outcomes = []
            for number in range(10):
                try:
                    outcomes.append(await client.put("b", f"k{number}", b"x", if_absent=True))
                except Unavailable:  # the session hung on the coordinator that died
                    outcomes.append(await client.put("b", f"k{number}", b"x", if_absent=True))
            assert all(isinstance(outcome, ObjectInfo) for outcome in outcomes)
            await client.aclose()
    finally:
        members.stop()


def _use_etcd(config: Path, members: EtcdCluster) -> None:
    text, _, _ = config.read_text().partition("[coordination]")
    tls = members.tls
    endpoints = ", ".join(f'"{endpoint}"' for endpoint in members.endpoints)
    text += f"""[coordination]
kind = "etcd"
endpoints = [{endpoints}]
ca = "{tls.authority}"
certificate = "{tls.certificate}"
key = "{tls.key}"
"""
    config.write_text(text)
