"""One operation at a time against a client: drawn, timed, checked and counted; and what goes before and after them.

What a process stores itself it keeps account of, one byte per object: at the end all of it is read back.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain

from coffre.bench.load.content import Content, Lost, Resurrected, Verifier, WrongBytes
from coffre.bench.load.plan import LoadPlan, ObjectSpec, Operation
from coffre.bench.load.recorder import Recorder
from coffre.client import AsyncClient
from coffre.cluster.clock import Clock
from coffre.cluster.errors import (
    CoffreError,
    IntegrityError,
    NotFound,
    OutcomeUnknown,
    ResourceExhausted,
    RetryableError,
    Unavailable,
)
from coffre.dev.tasks import for_each

__all__ = ["GROUP", "Checked", "Fate", "Housekeeping", "Ledger", "Objects", "Operations"]

GROUP = 100  # objects below one prefix, which one list asks for
_SMALL_BYTES = 1 << 20


class Objects:
    """What is stored, as a function of the plan alone. Holds no object."""

    def __init__(self, plan: LoadPlan, clock: Clock) -> None:
        self._plan, self._clock = plan, clock
        self._workload = plan.parsed_workload()
        self._content = Content(plan.seed)

    def base(self, number: int) -> str:
        """The key of one of the objects that are there before the run, for all processes to read."""
        return f"{self._plan.prefix}/base/{number:010d}"

    def group(self, base_key: str) -> tuple[str, list[str]]:
        """The prefix that a base object shares with its neighbours, and the keys of all of them in order."""
        number = int(base_key[-10:])
        first = number - number % GROUP
        numbers = range(first, min(first + GROUP, self._plan.objects))
        return base_key[:-2], [self.base(each) for each in numbers]

    def own(self, process: int, number: int) -> str:
        """The key of one of the objects that a process puts during the run."""
        return f"{self._plan.prefix}/process-{process}/{number:010d}"

    def spec(self, key: str) -> ObjectSpec:
        """Class and size of an object."""
        return self._workload.spec(self._plan.seed, key)

    async def put(self, client: AsyncClient, key: str) -> float:
        """Put an object; return when the client was called: a small one's bytes are made before."""
        spec, bucket = self.spec(key), self._plan.bucket
        texture, size_bytes = spec.kind.texture, spec.size_bytes
        if size_bytes > _SMALL_BYTES:
            begun = self._clock.monotonic()
            await client.put(bucket, key, self._content.stream(key, texture, size_bytes))
        else:
            data = self._content.whole(key, texture, size_bytes)
            begun = self._clock.monotonic()
            await client.put(bucket, key, data)
        return begun

    async def read(
        self, client: AsyncClient, key: str, *, start: int = 0, length: int | None = None
    ) -> float:
        """Get an object or a part of it and compare every byte; return when the last one was there.

        Raises `WrongBytes`, and what the client raises.
        """
        spec, bucket = self.spec(key), self._plan.bucket
        expected = spec.size_bytes - start if length is None else length
        verifier = Verifier(self._content, key, spec.kind.texture, start=start, length_bytes=expected)
        if expected > _SMALL_BYTES:
            async with aclosing(client.get_stream(bucket, key, start=start, length=length)) as pieces:
                async for piece in pieces:
                    verifier.check(piece)
            ended = self._clock.monotonic()
        else:
            data = await client.get(bucket, key, start=start, length=length)
            ended = self._clock.monotonic()
            verifier.check(data)
        verifier.finish()
        return ended


LISTING = "listing"  # the class of a list, which is of no single object
OBJECTS_MAX = 1 << 26
EXAMPLES_MAX = 10
IN_FLIGHT = 16  # of what goes before and after the load
ATTEMPTS = 2  # the client is patient itself


class Fate(IntEnum):
    """What is known of an object."""

    UNKNOWN = 0  # under way, or nobody could say whether it stands: whole, or not there
    ACKNOWLEDGED = 1  # must be there
    REFUSED = 2  # `Unavailable`: must not be there
    DELETED = 3  # must not be there any more


class Ledger:
    """The objects of one process, numbered as they are put. Each is put once, and deleted at most once."""

    def __init__(self) -> None:
        self._fates = bytearray()
        self._deletable: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._fates)

    def begin(self) -> int:
        """The number of a new object. Raises `ResourceExhausted` after 2^26 of them."""
        if len(self._fates) == OBJECTS_MAX:
            raise ResourceExhausted(
                f"a client process keeps account of {OBJECTS_MAX} objects, and of no more"
            )
        self._fates.append(Fate.UNKNOWN)
        return len(self._fates) - 1

    def settle(self, number: int, fate: Fate) -> None:
        """Note what became of it."""
        self._fates[number] = fate
        if fate is Fate.ACKNOWLEDGED:
            self._deletable.append(number)

    def take_oldest(self) -> int | None:
        """An acknowledged object to delete, which nobody else gets; None when there is none."""
        if not self._deletable:
            return None
        number = self._deletable.popleft()
        self._fates[number] = Fate.UNKNOWN
        return number

    def fates(self) -> Iterator[tuple[int, Fate]]:
        """Every object with its fate."""
        for number, fate in enumerate(self._fates):
            yield number, Fate(fate)


@dataclass(frozen=True, slots=True)
class _Task:
    operation: Operation
    kind: str
    key: str
    number: int  # in the ledger; -1 for an object that is there before the run


@dataclass(frozen=True, slots=True)
class _Done:
    begun: float  # when the client was called, and when it had answered: readings of the monotonic clock
    ended: float
    size_bytes: int = 0


class Operations:
    """The operations of one client process."""

    def __init__(
        self,
        client: AsyncClient,
        plan: LoadPlan,
        process: int,
        recorder: Recorder,
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        self._client, self._plan, self._process = client, plan, process
        self._recorder, self._ledger, self._clock = recorder, ledger, clock
        self._objects = Objects(plan, clock)
        self._mix = plan.parsed_mix()
        self._chance = random.Random(f"{plan.seed}/{process}")
        calls = (self._put, self._get, self._range, self._head, self._list, self._delete)
        self._calls = dict(zip(Operation, calls, strict=True))
        self.examples: list[str] = []  # of wrong or lost data

    async def perform(self, due: float | None = None) -> None:
        """Do one operation and count it. Its latency counts from when it was `due`, or else from the client's call."""
        if due is not None:
            self._recorder.lag.record(self._clock.monotonic() - due)
        task = self._draw()
        try:
            done = await self._calls[task.operation](task)
        except CoffreError as error:
            self._failed(task, error)
        else:
            since = done.begun if due is None else due
            self._recorder.succeeded(
                task.operation, task.kind, since=since, ended=done.ended, size_bytes=done.size_bytes
            )

    def _draw(self) -> _Task:
        """The next operation by chance. With nothing of its own to delete, a process puts something."""
        operation = self._mix.draw(self._chance)
        if operation is Operation.DELETE:
            oldest = self._ledger.take_oldest()
            if oldest is not None:
                return self._task(operation, self._objects.own(self._process, oldest), oldest)
            operation = Operation.PUT
        if operation is Operation.PUT:
            number = self._ledger.begin()
            return self._task(operation, self._objects.own(self._process, number), number)
        return self._task(operation, self._objects.base(self._chance.randrange(self._plan.objects)), -1)

    def _task(self, operation: Operation, key: str, number: int) -> _Task:
        kind = LISTING if operation is Operation.LIST else self._objects.spec(key).kind.name
        return _Task(operation, kind, key, number)

    def _failed(self, task: _Task, error: CoffreError) -> None:
        # What is read was acknowledged before the run, and nobody deletes it.
        if isinstance(error, NotFound) and task.number < 0:
            error = Lost(f"{task.key} was acknowledged, and is not there")
        if isinstance(error, IntegrityError) and len(self.examples) < EXAMPLES_MAX:
            self.examples.append(f"{task.operation.value} {task.key}: {type(error).__name__}: {error}")
        name = type(error).__name__
        self._recorder.failed(task.operation, task.kind, name, ended=self._clock.monotonic())

    # ---------------------------------------------------------------- the six

    async def _put(self, task: _Task) -> _Done:
        try:
            begun = await self._objects.put(self._client, task.key)
        except Unavailable as error:
            # `Unavailable` promises that nothing was written; its subclass and all others promise nothing.
            if not isinstance(error, OutcomeUnknown):
                self._ledger.settle(task.number, Fate.REFUSED)
            raise
        self._ledger.settle(task.number, Fate.ACKNOWLEDGED)
        return _Done(begun, self._clock.monotonic(), self._objects.spec(task.key).size_bytes)

    async def _get(self, task: _Task) -> _Done:
        return await self._read(task, 0, self._objects.spec(task.key).size_bytes)

    async def _range(self, task: _Task) -> _Done:
        size_bytes = self._objects.spec(task.key).size_bytes
        length = min(self._plan.range_bytes, size_bytes)
        return await self._read(task, self._chance.randrange(size_bytes - length + 1), length)

    async def _read(self, task: _Task, start: int, length: int) -> _Done:
        asked = {} if task.operation is Operation.GET else {"start": start, "length": length}
        begun = self._clock.monotonic()
        ended = await self._objects.read(self._client, task.key, **asked)
        return _Done(begun, ended, length)

    async def _head(self, task: _Task) -> _Done:
        begun = self._clock.monotonic()
        info = await self._client.head(self._plan.bucket, task.key)
        ended = self._clock.monotonic()
        if info.size_bytes != self._objects.spec(task.key).size_bytes:
            raise WrongBytes(f"head says {info.size_bytes} bytes, which is not what was put")
        return _Done(begun, ended)

    async def _list(self, task: _Task) -> _Done:
        """List the neighbours of an object. All of them are there, and none is ever deleted."""
        prefix, expected = self._objects.group(task.key)
        found: list[str] = []
        token: str | None = None
        begun = self._clock.monotonic()
        while True:
            page = await self._client.list_page(self._plan.bucket, prefix=prefix, token=token)
            found += [each.key for each in page.objects]
            token = page.next_token
            if token is None or len(found) > len(expected):
                break
        ended = self._clock.monotonic()
        if found != expected:
            raise Lost(
                f"a listing of {prefix} shows {len(found)} keys, not the {len(expected)} that are there"
            )
        return _Done(begun, ended)

    async def _delete(self, task: _Task) -> _Done:
        begun = self._clock.monotonic()
        try:
            await self._client.delete(self._plan.bucket, task.key)
        except Unavailable as error:
            if not isinstance(error, OutcomeUnknown):
                self._ledger.settle(task.number, Fate.ACKNOWLEDGED)  # and may be tried again
            raise
        self._ledger.settle(task.number, Fate.DELETED)
        return _Done(begun, self._clock.monotonic())


@dataclass(frozen=True, slots=True)
class Checked:
    """What the look back has found."""

    checked: int
    errors: dict[str, int]  # by class
    examples: list[str]


class Housekeeping:
    """The share of one process. `advance` gets the bytes of each object that is dealt with."""

    def __init__(
        self,
        client: AsyncClient,
        plan: LoadPlan,
        process: int,
        ledger: Ledger,
        clock: Clock,
        advance: Callable[[int], None],
    ) -> None:
        self._client, self._plan, self._process = client, plan, process
        self._ledger, self._advance = ledger, advance
        self._objects = Objects(plan, clock)

    def _base_keys(self) -> Iterable[str]:
        return map(self._objects.base, range(self._process, self._plan.objects, self._plan.processes))

    async def fill(self) -> None:
        """Store what all processes will read. Raises what the client raises when it goes on failing."""

        async def put(key: str) -> None:
            await _persistently(lambda: self._objects.put(self._client, key))
            self._advance(self._objects.spec(key).size_bytes)

        await for_each(self._base_keys(), put, at_once=IN_FLIGHT)
        await self._client.flush()

    async def check(self) -> Checked:
        """Read everything back that this process has written, now that nothing else goes on."""
        errors: Counter[str] = Counter()
        examples: list[str] = []

        async def check(entry: tuple[int, Fate]) -> None:
            key = self._objects.own(self._process, entry[0])
            try:
                await _persistently(lambda: self._check_one(key, entry[1]))
            except CoffreError as error:
                errors[type(error).__name__] += 1
                if len(examples) < EXAMPLES_MAX:
                    examples.append(f"check {key}: {type(error).__name__}: {error}")
            self._advance(self._objects.spec(key).size_bytes)

        await for_each(self._ledger.fates(), check, at_once=IN_FLIGHT)
        return Checked(len(self._ledger), dict(errors), examples)

    async def _check_one(self, key: str, fate: Fate) -> None:
        try:
            await self._objects.read(self._client, key)
        except NotFound:
            if fate is Fate.ACKNOWLEDGED:
                raise Lost(f"{key} was acknowledged, and is not there") from None
        else:
            if fate in (Fate.REFUSED, Fate.DELETED):
                raise Resurrected(f"{key} is there, and its fate was: {fate.name.lower()}")

    async def clean(self) -> None:
        """Delete all that this process has stored, before the load and during it."""

        async def delete(key: str) -> None:
            await _persistently(lambda: self._client.delete(self._plan.bucket, key))
            self._advance(0)

        left = (number for number, fate in self._ledger.fates() if fate in (Fate.ACKNOWLEDGED, Fate.UNKNOWN))
        own = (self._objects.own(self._process, number) for number in left)
        await for_each(chain(self._base_keys(), own), delete, at_once=IN_FLIGHT)


async def _persistently(call: Callable[[], Awaitable[object]]) -> None:
    """Try once more when the error may pass."""
    for attempt in range(ATTEMPTS):
        try:
            await call()
            return
        except RetryableError:
            if attempt == ATTEMPTS - 1:
                raise
