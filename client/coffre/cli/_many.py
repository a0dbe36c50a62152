"""Many objects in one command: a few at once, and whatever cannot be done is named, counted and decides the status."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import click
from coffre.cli._session import printable
from coffre.cluster.admin import ExitCode, exit_code_of
from coffre.cluster.errors import CoffreError, IntegrityError, RetryableError

__all__ = ["Tally", "do_all"]

IN_FLIGHT = 16
FAILURES_IN_A_ROW = 64  # that may be tried again: then the cluster is not there, and the rest is not tried
_Item = TypeVar("_Item")
_Done = TypeVar("_Done")


@dataclass(slots=True)
class Tally(Generic[_Done]):
    """What was done, and how much was left out."""

    done: list[_Done] = field(default_factory=list)
    left_out: int = 0
    code: ExitCode = ExitCode.OK
    _in_a_row: int = 0

    def leave_out(self, name: str, reason: str | OSError | CoffreError) -> None:
        """Name on standard error what is not done, and why."""
        self.left_out += 1
        code = ExitCode.FAILURE
        if isinstance(reason, IntegrityError | RetryableError):
            code = exit_code_of(reason)
        if not isinstance(reason, str):
            self._in_a_row = self._in_a_row + 1 if isinstance(reason, RetryableError) else 0
        self.code = max(self.code, code)
        text = (reason.strerror or str(reason)) if isinstance(reason, OSError) else str(reason)
        click.echo(f"coffre: left out {printable(name)}: {printable(text)}", err=True)

    def add(self, done: _Done) -> None:
        """Count one that was done."""
        self._in_a_row = 0
        self.done.append(done)

    @property
    def is_hopeless(self) -> bool:
        """Whether to go on would only fail again."""
        return self._in_a_row >= FAILURES_IN_A_ROW

    def end(self, what: str) -> None:
        """Say how many were left out, and end with the status of the worst."""
        if self.left_out:
            click.echo(f"coffre: {self.left_out} left out, {len(self.done)} {what}", err=True)
            raise SystemExit(int(self.code))


async def do_all(
    items: Iterable[_Item],
    call: Callable[[_Item], Awaitable[_Done]],
    name_of: Callable[[_Item], str],
    tally: Tally[_Done],
) -> None:
    """Run `call` on every item, a bounded number at once; what fails is left out, and the others go on."""
    source = iter(items)

    async def worker() -> None:
        for item in source:
            if tally.is_hopeless:
                tally.leave_out(name_of(item), "not tried: the cluster does not answer")
                continue
            try:
                tally.add(await call(item))
            except (OSError, CoffreError) as error:
                tally.leave_out(name_of(item), error)

    workers = [asyncio.create_task(worker()) for _ in range(IN_FLIGHT)]
    try:
        await asyncio.gather(*workers)
    finally:
        for each in workers:
            each.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
