"""What a client process does before and after the load: store what is to be read, look back, delete."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from coffre.bench.load.damage import Lost, Resurrected
from coffre.bench.load.ledger import Fate, Ledger
from coffre.bench.load.objects import Objects
from coffre.bench.load.plan import LoadPlan
from coffre.bench.tasks import for_each
from coffre.client import AsyncClient
from coffre.cluster.clock import Clock
from coffre.cluster.errors import CoffreError, NotFound, RetryableError

__all__ = ["Checked", "Housekeeping"]

IN_FLIGHT = 16
ATTEMPTS = 2  # the client is patient itself
EXAMPLES_MAX = 10


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

        await for_each(self._base_keys(), delete, at_once=IN_FLIGHT)
        left = (number for number, fate in self._ledger.fates() if fate in (Fate.ACKNOWLEDGED, Fate.UNKNOWN))
        await for_each(
            (self._objects.own(self._process, number) for number in left), delete, at_once=IN_FLIGHT
        )


async def _persistently(call: Callable[[], Awaitable[object]]) -> None:
    """Try once more when the error may pass."""
    for attempt in range(ATTEMPTS):
        try:
            await call()
            return
        except RetryableError:
            if attempt == ATTEMPTS - 1:
                raise
