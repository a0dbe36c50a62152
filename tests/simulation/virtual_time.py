"""An asyncio event loop on virtual time: no selector, no threads, no chance.

`time()` stands still while anything is ready to run, and then jumps to the next timer. Whatever rests on asyncio
(`sleep`, `timeout`, `wait`) then takes no real time and happens in the same order in every run.

Sets of futures are the trap: their order is that of addresses. Futures and tasks of this loop therefore hash to the
order in which they were made. Worker threads do not exist: what is handed to an executor runs at once.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import heapq
from asyncio import base_events
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["Actor", "Stalled", "VirtualLoop", "run_virtually"]

_Result = TypeVar("_Result")
_actor: contextvars.ContextVar[str] = contextvars.ContextVar("actor", default="world")


class Stalled(RuntimeError):
    """Nothing is ready and no timer runs: somebody waits for what can never happen."""


class _Future(asyncio.Future[Any]):
    """A future whose place in a set is the same in every run."""

    serial = 0

    def __hash__(self) -> int:
        return self.serial


class _Task(asyncio.Task[Any]):
    def __init__(
        self,
        coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        loop: VirtualLoop,
        context: contextvars.Context | None,
        serial: int,
    ) -> None:
        self.serial = serial  # before asyncio puts it into its set of all tasks
        super().__init__(coro, loop=loop, context=context)

    def __hash__(self) -> int:
        return self.serial


@dataclass(slots=True)
class _Frozen:
    """What a process would do if it did not stand still."""

    since: float
    ready: list[asyncio.Handle]
    timers: list[asyncio.TimerHandle]


class _Selector:
    """What the base loop calls to wait for the next timer."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        self._loop.pass_time(timeout)
        return []

    def close(self) -> None:
        """Nothing to close."""


class VirtualLoop(base_events.BaseEventLoop):
    """Runs callbacks in one order and jumps over the time between them. Keeps its tasks by actor."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._serial = 0
        self._selector = _Selector(self)
        self._clock_resolution = 1e-9
        self._running: dict[str, dict[_Task, None]] = {}
        self._frozen: dict[str, _Frozen] = {}
        self.errors: list[BaseException] = []  # of tasks and callbacks that nobody waits for
        self.set_exception_handler(self._note_error)

    def time(self) -> float:
        return self._now

    def pass_time(self, timeout: float | None) -> None:
        if timeout is None:
            raise Stalled("everybody waits and no timer runs")
        if timeout > 0:
            self._now = max(self._now, self._scheduled[0]._when)  # type: ignore[attr-defined]

    def leap(self, seconds: float) -> None:
        """Let time pass in which nothing runs, as if all machines had slept: timers that are due fire once, late."""
        self._now += seconds

    def freeze(self, actor: str) -> None:
        """Let a process stand still, with all that it has in its hands, until it is thawed."""
        if actor in self._frozen:
            return
        ready: list[asyncio.Handle] = []
        for _ in range(len(self._ready)):  # type: ignore[attr-defined]
            handle = self._ready.popleft()  # type: ignore[attr-defined]
            if _actor_of(handle) == actor:
                ready.append(handle)
                handle = asyncio.Handle(_nothing, (), self)  # the loop has counted how many are ready
            self._ready.append(handle)  # type: ignore[attr-defined]
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        timers = [timer for timer in scheduled if _actor_of(timer) == actor]
        scheduled[:] = [timer for timer in scheduled if _actor_of(timer) != actor]
        heapq.heapify(scheduled)
        self._frozen[actor] = _Frozen(self._now, ready, timers)

    def thaw(self, actor: str, *, late: bool = True) -> None:
        """Let it go on. `late`: its timers are due by now; else they have stood still, too."""
        frozen = self._frozen.pop(actor, None)
        if frozen is None:
            return
        self._ready.extend(frozen.ready)  # type: ignore[attr-defined]
        for timer in frozen.timers:
            if not timer.cancelled():
                if not late:
                    timer._when += self._now - frozen.since  # type: ignore[attr-defined]
                heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]

    def _call_soon(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context | None
    ) -> asyncio.Handle:
        handle: asyncio.Handle = super()._call_soon(callback, args, context)  # type: ignore[misc]
        if self._frozen and (frozen := self._frozen.get(_actor_of(handle))) is not None:
            self._ready.pop()  # type: ignore[attr-defined]
            frozen.ready.append(handle)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        future = _Future(loop=self)
        self._serial += 1
        future.serial = self._serial
        return future

    def create_task(
        self,
        coro: Coroutine[Any, Any, _Result] | Generator[Any, None, _Result],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[_Result]:
        self._serial += 1
        task = _Task(coro, self, context, self._serial)
        actor = _actor.get() if context is None else context.get(_actor, "world")
        mine = self._running.setdefault(actor, {})
        mine[task] = None
        task.add_done_callback(lambda done: mine.pop(task, None))
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., _Result], *args: Any
    ) -> asyncio.Future[_Result]:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it is its caller's
            future.set_exception(error)
        return future

    def cancel_all(self, actor: str) -> None:
        """Cancel every task of an actor, as the end of its process would."""
        self.thaw(actor)
        for task in list(self._running.get(actor, ())):
            task.cancel()

    def tasks(self) -> list[asyncio.Task[Any]]:
        """Every task that has not ended, those of the earliest actors first."""
        return [task for mine in self._running.values() for task in mine]

    def _note_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.errors.append(error or RuntimeError(str(context.get("message"))))

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody waits in a selector to be woken."""


def _nothing() -> None:
    """In the place of what stands still."""


def _actor_of(handle: asyncio.Handle) -> str:
    context: contextvars.Context = handle._context  # type: ignore[attr-defined]
    return context.get(_actor, "world")


class Actor:
    """A process of the simulated world: what is spawned in it, and what that spawns, can be killed together."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.name = name
        self._loop = loop
        self._context = contextvars.copy_context()
        self._context.run(_actor.set, name)

    def spawn(self, work: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        return self._loop.create_task(work, context=self._context)

    def run(self, function: Callable[..., _Result], *args: Any) -> _Result:
        """Call `function` as this actor, so that what it starts is the actor's."""
        return self._context.copy().run(function, *args)

    def kill(self) -> None:
        self._loop.cancel_all(self.name)

    def freeze(self) -> None:
        self._loop.freeze(self.name)

    def thaw(self, *, late: bool) -> None:
        self._loop.thaw(self.name, late=late)


def run_virtually(main: Callable[[VirtualLoop], Coroutine[Any, Any, _Result]]) -> _Result:
    """Run `main` to its end on a new loop, then end everything that still runs. Raises `Stalled`.

    The collector of cycles rests meanwhile: when it runs depends on all that ran before, and it closes generators.
    """
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()  # the modules: there is nothing to collect in them, and much to walk through
    gc.disable()
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main(loop))
    finally:
        try:
            for _ in range(10):
                left = loop.tasks()
                for task in left:
                    task.cancel()
                if not left:
                    break
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()
            gc.enable()
