"""Objects that a client cannot open, since its ring lacks the key: they stand in nobody's way, and are named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from coffre.client import AsyncClient, KeyRing, ObjectInfo
from coffre.cluster.errors import (
    AlreadyExists,
    IntegrityError,
    KeyUnavailable,
    NotFound,
    PreconditionFailed,
)
from coffre.cluster.names import ObjectName
from coffre.dev.in_process import QUICK, InProcessCluster, Traffic
from coffre.proto import coffre_pb2 as pb

MIB = 1 << 20
MakeCluster = Callable[..., InProcessCluster]
OLD = KeyRing.generate()
NEW = OLD.rotated()


def clients(cluster: InProcessCluster) -> tuple[AsyncClient, AsyncClient]:
    """One with the ring of before a rotation, and one with the ring of after it."""
    return cluster.client(keys=OLD, options=QUICK), cluster.client(keys=NEW, options=QUICK)


async def listed(client: AsyncClient, **options: str | int) -> list[ObjectInfo | str]:
    return [entry async for entry in client.list("b", **options)]  # type: ignore[arg-type]


def prefixes(entries: list[ObjectInfo | str]) -> list[str]:
    return [entry for entry in entries if isinstance(entry, str)]


def marked(entries: list[ObjectInfo | str]) -> list[str]:
    return [entry.key for entry in entries if isinstance(entry, ObjectInfo) and entry.unreadable]


async def test_one_object_of_another_key_is_listed_and_marked(cluster: InProcessCluster) -> None:
    old, new = clients(cluster)
    await old.put_many("b", [(f"{number:02}", b"x") for number in range(40)])
    info = await new.put("b", "20", b"later", content_type="text/plain", metadata={"ward": "3"})
    await new.flush()
    entries = await listed(old, page_size=7)
    assert [entry.key for entry in entries if isinstance(entry, ObjectInfo)] == [f"{n:02}" for n in range(40)]
    (entry,) = [entry for entry in entries if isinstance(entry, ObjectInfo) and entry.unreadable]
    assert (entry.bucket, entry.key, entry.version) == ("b", "20", info.version)
    assert (entry.size_bytes, entry.unixtime_ms, entry.deleted) == (5, info.unixtime_ms, False)
    assert (entry.content_type, dict(entry.metadata)) == ("", {})  # these are encrypted
    for part in ("b/20", NEW.current, "key ring"):
        assert part in entry.unreadable
    assert marked(await listed(new)) == []
    assert prefixes(await listed(old, delimiter="0")) == prefixes(await listed(new, delimiter="0"))


@pytest.mark.parametrize("settled", [True, False])
async def test_deletes_need_no_key(cluster: InProcessCluster, settled: bool) -> None:
    old, new = clients(cluster)
    await old.put_many("b", [(key, b"x") for key in ("kept", "gone", "folder/gone")])
    await old.flush()
    for key in ("gone", "folder/gone", "never there"):
        await new.delete("b", key)
    if settled:
        await new.flush()
    assert [entry.key for entry in await listed(old) if isinstance(entry, ObjectInfo)] == ["kept"]
    assert await listed(old, prefix="f", delimiter="/") == []
    with pytest.raises(NotFound):
        await old.get("b", "gone")
    with pytest.raises(NotFound):
        await old.head("b", "gone")
    assert [(v.deleted, bool(v.unreadable)) for v in await old.versions("b", "gone")] == [(True, True)]
    await old.put("b", "gone", b"again", if_absent=True)
    assert await old.get("b", "gone") == b"again"


async def test_what_needs_the_key_names_bucket_key_and_key_id(cluster: InProcessCluster) -> None:
    old, new = clients(cluster)
    await new.put("b", "small", b"x")
    await new.put("b", "large", bytes(3 * MIB))
    await new.flush()
    for key in ("small", "large"):
        for call in (old.get("b", key), old.head("b", key), anext(old.get_stream("b", key))):
            with pytest.raises(KeyUnavailable) as raised:
                await call
            assert f"b/{key}" in str(raised.value)
            assert NEW.current in str(raised.value)
    assert [place.state for place in await old.locate("b", "small")] == ["ok"] * 6


async def test_conditions_need_no_key(cluster: InProcessCluster) -> None:
    old, new = clients(cluster)
    info = await new.put("b", "k", b"x")
    with pytest.raises(AlreadyExists):
        await old.put("b", "k", b"y", if_absent=True)
    with pytest.raises(PreconditionFailed):
        await old.delete("b", "k", if_version="0" * 32)
    await old.put("b", "k", b"z", if_version=info.version)
    assert await old.get("b", "k") == b"z"


async def test_everything_of_another_key_can_be_deleted(cluster: InProcessCluster) -> None:
    old, new = clients(cluster)
    await new.put_many("b", [(f"old/{number}", b"x") for number in range(9)])
    for entry in await listed(old, prefix="old/"):
        assert isinstance(entry, ObjectInfo)
        await old.delete("b", entry.key)
    assert await listed(old) == await listed(new) == []


async def test_a_write_of_another_key_that_was_never_settled_is_decided(cluster: InProcessCluster) -> None:
    """The client that wrote it ended at once: no mark of it ever left."""
    old, new = clients(cluster)
    await old.put_many("b", [("deleted", b"x"), ("written", b"x")])
    await old.flush()
    cluster.network.before = without_settles
    await new.delete("b", "deleted")
    await new.put("b", "written", b"yy")
    (entry,) = await listed(old)
    assert isinstance(entry, ObjectInfo)
    assert (entry.key, entry.size_bytes, bool(entry.unreadable)) == ("written", 2, True)
    with pytest.raises(NotFound):
        await old.head("b", "deleted")


async def without_settles(node: int, request: Traffic) -> None:
    """What says that a version stands is lost on the way."""
    if isinstance(request, pb.BatchRequest):
        del request.settled[:]
        for operation in request.operations:
            if operation.HasField("settle"):
                operation.settle.stamp = bytes(16)


async def test_a_few_liars_close_and_delete_nothing(cluster: InProcessCluster) -> None:
    """What m nodes say of a version that nobody else has, with a key that nobody has, is not believed."""
    old, _ = clients(cluster)
    await old.put_many("b", [(key, b"x") for key in "abc"])
    await old.flush()
    forged: dict[bytes, pb.Manifest] = {}

    async def lie(node: int, reply: Traffic) -> None:
        if node not in (1, 2):
            return
        held = [v for entry in getattr(reply, "entries", ()) for v in entry.versions]
        held += [v for outcome in getattr(reply, "outcomes", ()) for v in outcome.versions]
        for version in held:
            manifest = pb.Manifest.FromString(version.sealed.manifest)
            manifest.kind, manifest.key_id = pb.KIND_TOMBSTONE, "nobody's"
            manifest.stamp = (int.from_bytes(manifest.stamp, "big") + (1 << 90)).to_bytes(16, "big")
            version.sealed.manifest = manifest.SerializeToString()
            version.stamp, version.state = manifest.stamp, pb.STATE_SETTLED
            forged[version.stamp] = manifest

    cluster.network.after = lie
    assert [(e.key, e.unreadable) for e in await listed(old) if isinstance(e, ObjectInfo)] == [
        (key, "") for key in "abc"
    ]
    assert await old.get("b", "a") == b"x"
    assert forged


async def test_an_object_whose_manifests_are_all_damaged_is_listed_and_marked(
    cluster: InProcessCluster,
) -> None:
    client = cluster.client(options=QUICK)
    infos = {key: await client.put("b", key, b"x") for key in ("bad", "good")}
    await client.flush()
    name = ObjectName(client.tenant, "b", "bad")
    for store in cluster.stores.values():
        store.rot_manifest(name, bytes.fromhex(infos["bad"].version))
    entries = await listed(client)
    assert [(e.key, bool(e.unreadable)) for e in entries if isinstance(e, ObjectInfo)] == [
        ("bad", True),
        ("good", False),
    ]
    with pytest.raises(IntegrityError, match="b/bad"):
        await client.head("b", "bad")
