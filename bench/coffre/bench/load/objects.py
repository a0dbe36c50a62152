"""The objects of a run: their names, what each of them is, and how one is put and read back."""

from __future__ import annotations

from contextlib import aclosing

from coffre.bench.load.content import Content, Verifier
from coffre.bench.load.plan import LoadPlan
from coffre.bench.load.workload import ObjectSpec
from coffre.client import AsyncClient
from coffre.cluster.clock import Clock

__all__ = ["GROUP", "Objects"]

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
