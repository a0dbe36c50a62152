"""The loop that everything else rests on."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.simulation.virtual_time import Actor, Stalled, VirtualLoop, run_virtually

PACE = 3600.0


def test_an_hour_takes_no_time_and_ends_on_the_second() -> None:
    async def main(loop: VirtualLoop) -> float:
        await asyncio.sleep(PACE)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(PACE):
                await loop.create_future()
        return loop.time()

    begun = time.perf_counter()
    assert run_virtually(main) == 2 * PACE
    assert time.perf_counter() - begun < 5


def test_a_wait_for_nothing_is_found() -> None:
    async def main(loop: VirtualLoop) -> None:
        await loop.create_future()

    with pytest.raises(Stalled):
        run_virtually(main)


def test_sets_of_tasks_have_the_order_of_their_making() -> None:
    async def main(loop: VirtualLoop) -> list[int]:
        async def one(number: int) -> int:
            return number

        done, _ = await asyncio.wait([asyncio.create_task(one(number)) for number in range(50)])
        return [task.result() for task in done]

    orders = set()
    for _ in range(5):
        orders.add(tuple(run_virtually(main)))
        _garbage = [object() for _ in range(1000)]  # moves what is allocated next
    assert len(orders) == 1


def test_executors_are_inline_and_their_errors_are_the_callers() -> None:
    async def main(loop: VirtualLoop) -> int:
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, divmod, 1, 0)
        return await loop.run_in_executor(None, abs, -3)

    assert run_virtually(main) == 3


def test_an_actor_dies_with_all_that_it_started() -> None:
    async def main(loop: VirtualLoop) -> list[str]:
        ended: list[str] = []

        async def child(name: str) -> None:
            try:
                await asyncio.sleep(PACE)
            finally:
                ended.append(name)

        async def parent(name: str) -> None:
            await asyncio.gather(child(f"{name} 1"), child(f"{name} 2"))

        doomed, other = Actor(loop, "doomed"), Actor(loop, "other")
        doomed.spawn(parent("doomed"))
        survivor = other.spawn(parent("other"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        doomed.kill()
        for _ in range(3):
            await asyncio.sleep(0)
        assert not survivor.done()
        return sorted(ended)

    assert run_virtually(main) == ["doomed 1", "doomed 2"]
