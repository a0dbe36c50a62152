"""The client processes of a run, seen from the one that started them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from coffre.bench.load.plan import LoadPlan
from coffre.bench.processes import Child, child
from coffre.bench.tasks import together
from coffre.bench.typed_json import plain
from coffre.cluster import errors
from coffre.cluster.errors import InternalError

__all__ = ["Fleet", "fleet"]

_ERRORS = {kind.__name__: kind for kind in map(errors.__dict__.get, errors.__all__) if isinstance(kind, type)}
_Hear = Callable[[dict[str, Any]], None]


class Fleet:
    """Workers that do the same at the same time."""

    def __init__(self, members: list[Child]) -> None:
        self._members = members

    async def command(self, command: dict[str, object], hear: _Hear) -> list[dict[str, Any]]:
        """Have all do it at once; what each said at the end. `hear` gets what they say meanwhile.

        Raises the error of the first that failed, and `InternalError` when one ended.
        """
        async with together() as group:
            tasks = [group.create_task(_obeyed(member, command, hear)) for member in self._members]
        return [task.result() for task in tasks]


@asynccontextmanager
async def fleet(config: Path, plan: LoadPlan) -> AsyncIterator[Fleet]:
    """`plan.processes` workers, which end with the block, or with this process."""
    async with AsyncExitStack() as exits:
        members = []
        for number in range(plan.processes):
            worker = child(f"client process {number}", "coffre.bench.load.worker", str(config), str(number))
            members.append(await exits.enter_async_context(worker))
            await members[-1].say(plain(plan))
        yield Fleet(members)


async def _obeyed(member: Child, command: dict[str, object], hear: _Hear) -> dict[str, Any]:
    await member.say(command)
    while (message := await member.hear()) is not None:
        match message["event"]:
            case "done":
                return message
            case "failed":
                # By its class, so that the command ends with the same status as in one process.
                kind = _ERRORS.get(message["error"], InternalError)
                raise kind(f"{member.name}: {message['text'] or message['error']}")
            case _:
                hear(message)
    raise InternalError(f"{member.name} ended before it had done what it was told")
