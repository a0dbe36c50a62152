"""Coordination that a tenant sends nonsense: it refuses in the project's own words, and nothing of others changes."""

from __future__ import annotations

import random
from pathlib import Path

from coffre.cluster.clock import SystemClock
from coffre.cluster.coordination import Coordination, Put
from coffre.cluster.coordination.embedded import EmbeddedCoordination
from coffre.cluster.identity import Identity, Role
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy
from coffre.node.following import MapHolder
from coffre.node.serving.coordination import CoordinationHandler
from coffre.proto import coordination_pb2 as pb

from tests.fuzz.sender import Sender

_ROUNDS = 60
_NODE = MapNode(1, "a1", "127.0.0.1:7401", "server", "site", "runs", "FR", 1)
_OTHER = MapNode(2, "a2", "127.0.0.1:7402", "server-2", "site-2", "runs", "FR", 1)
_POLICY = Policy("1-1", 1, 1, ("FR",), Domain.NODE)
_MAP = ClusterMap("test", 1, 16, (_NODE, _OTHER), (_POLICY,), "1-1", (1,))
_KEYS = [
    "buckets/clinic/records", "buckets/other/records", "locks/clinic/00/aa", "locks/other/00/aa", "maps/current",
    "tenants/clinic", "nodes/0000000001", "repair/00007", "secret/x",
]  # fmt: skip
_OWN = ("buckets/clinic/", "locks/clinic/")


class _Tenant(Sender):
    """One tenant's requests, lawful before they are mangled."""

    def __init__(self, handler: CoordinationHandler, rng: random.Random) -> None:
        super().__init__(rng)
        self._handler = handler
        self._peer = Identity("test", Role.TENANT, "clinic")
        self._kinds = [
            self._get, self._range, *[self._commit] * 4, self._grant, self._keep_alive, self._revoke,
        ]  # fmt: skip

    def _key(self) -> str:
        return self._rng.choice(_KEYS)

    async def _get(self) -> None:
        request = pb.CoordinationGetRequest(key=self._key())
        self._mangled(request)
        await self._handler.get(self._peer, request)

    async def _range(self) -> None:
        request = pb.CoordinationRangeRequest(prefix=self._key()[: self._rng.randrange(20)], limit=10)
        self._mangled(request)
        await self._handler.range(self._peer, request)

    async def _commit(self) -> None:
        request = pb.CoordinationCommitRequest()
        request.compares.add().key = self._key()
        put = request.puts.add()
        put.key, put.value = self._key(), b"value"
        if self._rng.random() < 0.5:
            request.deletes.append(self._key())
        self._mangled(request)
        await self._handler.commit(self._peer, request)

    async def _grant(self) -> None:
        request = pb.LeaseGrantRequest(seconds=10)
        self._mangled(request)
        await self._handler.grant(self._peer, request)

    async def _keep_alive(self) -> None:
        request = pb.LeaseKeepAliveRequest(lease=self._rng.randrange(5))
        self._mangled(request)
        await self._handler.keep_alive(self._peer, request)

    async def _revoke(self) -> None:
        request = pb.LeaseRevokeRequest(lease=self._rng.randrange(5))
        self._mangled(request)
        await self._handler.revoke(self._peer, request)


async def _of_others(store: Coordination) -> dict[str, bytes]:
    found = {}
    for key in _KEYS:
        entry = await store.get(key)
        if entry is not None and not key.startswith(_OWN):
            found[key] = entry.value
    return found


async def test_requests_that_are_almost_right(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    store = await EmbeddedCoordination.open(tmp_path / "coordination", SystemClock(), rng.randbytes)
    try:
        await store.commit((), tuple(Put(key, b"what was there") for key in _KEYS))
        before = await _of_others(store)
        assert len(before) == len(_KEYS) - 2
        tenant = _Tenant(CoordinationHandler(1, store, MapHolder(_MAP, b""), SystemClock()), rng)
        refused = [await tenant.is_refused() for _ in range(_ROUNDS)]
        assert any(refused)
        assert not all(refused)
        assert await _of_others(store) == before, "what a tenant may not touch has changed"
        assert (await store.commit((), (Put("secret/y", b""),))).succeeded
    finally:
        await store.close()
