"""What the store in memory loses when it crashes."""

from __future__ import annotations

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import Unavailable
from coffre.node.memory import MemoryStore
from coffre.node.store import Abort, State

from tests.unit.node.store.store_cases import accept, adopt, cells, mark, name, settle, stamp, written


async def states(store: MemoryStore, *keys: str) -> list[State]:
    return [version.state for key in keys for version in await store.read(name(key), every=True)]


async def test_a_crash_loses_settles_and_marks_alone() -> None:
    store = MemoryStore(ManualClock())
    await store.apply(
        [accept(written(1), "a"), accept(written(1), "b"), accept(written(2), "c"), mark(written(1))]
    )
    await store.apply([settle(written(2), "c")])
    await store.apply([mark(written(2)), mark(written(3))])
    await store.apply([settle(written(1), "a")])
    assert await states(store, "a", "b", "c") == [State.SETTLED] * 3
    store.crash()
    assert await states(store, "a", "b", "c") == [State.SETTLED, State.SETTLED, State.ACCEPTED]


async def test_a_later_sync_keeps_marks() -> None:
    store = MemoryStore(ManualClock())
    await store.apply([accept(written(1))])
    await store.apply([mark(written(1))])
    await store.apply([accept(written(1), "other")])
    store.crash()
    assert await states(store, "key", "other") == [State.SETTLED] * 2


async def test_a_crash_does_not_settle_rows_for_good() -> None:
    """An unsynced mark decides, a row is rewritten on that ground without a sync, and both are forgotten."""
    store = MemoryStore(ManualClock())
    await store.apply([accept(written(1)), accept(written(2))])
    await store.apply([mark(written(2))])
    await store.apply([settle(written(2))])
    assert await states(store, "key") == [State.SETTLED]
    store.crash()
    assert await states(store, "key") == [State.ACCEPTED] * 2


async def test_a_crash_brings_back_a_row_that_had_gone() -> None:
    """A settle spends an abort, which was all of the row, and is forgotten."""
    store = MemoryStore(ManualClock())
    await store.apply([Abort(name(), 7, stamp(written(1)))])
    await store.apply([settle(written(1))])
    assert await states(store, "key") == []
    store.crash()
    assert await states(store, "key") == [State.ABORTED]


async def test_a_crash_takes_a_given_back_shard_back() -> None:
    """An unsynced settle trims a version and stages its large shard again: after the crash it is not there twice."""
    store = MemoryStore(ManualClock())
    staged = await store.stage("tenant", adopt(5).data_id, 1)
    await staged.write(cells(2))
    await staged.commit()
    await store.apply([adopt(5, shard=cells(2))])
    await store.apply([accept(6)])
    await store.apply([settle(6)])
    assert len(store._staging) == 1
    store.crash()
    assert not store._staging
    assert await states(store, "key") == [State.ACCEPTED] * 2


async def test_nobody_goes_on_staging_after_a_crash() -> None:
    store = MemoryStore(ManualClock())
    written_before = await store.stage("tenant", adopt(5).data_id, 1)
    await written_before.write(cells(2))
    store.crash()
    with pytest.raises(Unavailable, match="not being staged any more"):
        await written_before.write(cells(2))
    with pytest.raises(Unavailable, match="not being staged any more"):
        await written_before.commit()
    assert not store._staging


async def test_a_crash_keeps_count_of_bytes() -> None:
    """What an unsynced settle had freed is there again after the crash, and counts again."""
    store = MemoryStore(ManualClock())
    await store.apply([accept(5, "k"), accept(6, "k")])
    staged = await store.stage("tenant", adopt(7).data_id, 1)
    await staged.write(cells(2))
    await staged.commit()
    await store.apply([adopt(7, shard=cells(2)), accept(8)])
    before = (await store.status()).live_bytes
    await store.apply([settle(6, "k")])
    await store.apply([settle(8)])
    assert (await store.status()).live_bytes < before
    store.crash()
    assert (await store.status()).live_bytes == before
