"""What the store in memory loses when it crashes."""

from __future__ import annotations

from coffre.cluster.clock import ManualClock
from coffre.node.memory_store import MemoryStore
from coffre.node.store import State

from tests.unit.node.store_cases import accept, mark, name, settle, written


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
