"""A terminal of a chosen width for a command under test: what it shows, and what a person types."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import termios
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.patience import PATIENCE_SECONDS


class Terminal:
    """A command whose standard streams are a terminal, which controls it: ^C typed there is an interrupt."""

    def __init__(self, command: list[str], environment: Mapping[str, str], columns: int = 80) -> None:
        self._master, slave = os.openpty()
        termios.tcsetwinsize(slave, (24, columns))

        def take() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=dict(environment), preexec_fn=take
        )
        os.close(slave)
        self.shown = ""

    def until(self, text: str) -> None:
        """Read until `text` is shown. Fails when the command ends, or stands still, without it."""
        while text not in self.shown:
            if not self._read():
                raise AssertionError(f"{text!r} was never shown: {self.shown!r}")

    def enter(self, text: str) -> None:
        """What a person types."""
        os.write(self._master, text.encode())

    def interrupt(self) -> int:
        """^C, until the command ends: one that comes just before it waits for an answer is heard after it."""
        while self.process.poll() is None:
            self.enter("\x03")
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)
        return self.end()

    def end(self) -> int:
        """Read to the end; return the exit status."""
        while self._read():
            pass
        return self.process.wait(PATIENCE_SECONDS)

    def _read(self) -> bool:
        if not select.select([self._master], [], [], PATIENCE_SECONDS)[0]:
            raise AssertionError(f"nothing more is shown: {self.shown!r}")
        try:
            found = os.read(self._master, 65536)
        except OSError:  # EIO: nobody has the other end any more
            return False
        self.shown += found.decode()
        return bool(found)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
