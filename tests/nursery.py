"""Processes of the `coffre` command that are forked from one which has imported everything and done nothing yet.

Importing is most of what the start of a node costs, and the tests start hundreds. What a process does from `main` on is
as outside: it has its own session, files, log and end. `Nursery.spawn` is the `start_process` of each `LocalCluster`
here (tests/integration/conftest.py), and starts the nodes of tests/runbooks.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, BinaryIO

from coffre.dev.local_cluster import NodeProcess, start_process

from tests.patience import PATIENCE_SECONDS

__all__ = ["Nursery"]

COFFRE = str(Path(sys.executable).with_name("coffre"))
_LEFT_OUT = ("bench", "dev")  # branches that start processes of their own
_OBJECTS = ("coffre.cli._tree", "coffre.cli._objects", "coffre.cli._buckets")


class Nursery:
    """A process to fork others from; `close` ends it and all that is left of them."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery"],
            cwd=Path(__file__).parent.parent,
            env={
                **os.environ,
                "GRPC_VERBOSITY": "NONE",
            },  # as `coffre.cli.main` has it, and read when gRPC is imported
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._one_at_a_time = threading.Lock()

    def spawn(self, command: list[str], log: BinaryIO, cwd: Path | None = None) -> NodeProcess:
        """`local_cluster.start_process`, with a fork in place of a new interpreter where the command is `coffre`.

        `cwd`: where it runs, if not here.
        """
        program, *arguments = command
        if program != COFFRE:
            return start_process(command, log)
        request = {
            "arguments": arguments,
            "log": log.name,
            "cwd": str(cwd or Path.cwd()),
            "environment": dict(os.environ),
        }
        return Forked(self, self.ask(request))

    def ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._one_at_a_time:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=PATIENCE_SECONDS)
        self._process.stdout.close()


class Forked:
    """What `subprocess.Popen` would be for it."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        self._nursery = nursery
        self._returncode: int | None = None

    def poll(self) -> int | None:
        if self._returncode is None:
            self._returncode = self._nursery.ask({"poll": self.pid})
        return self._returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises `subprocess.TimeoutExpired`."""
        if (code := self.poll()) is not None:
            return code
        ended = os.pidfd_open(self.pid)
        try:
            ready, _, _ = select.select([ended], [], [], timeout)
        finally:
            os.close(ended)
        code = self.poll()
        if not ready or code is None:
            raise subprocess.TimeoutExpired("coffre", timeout or 0.0)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


# ---------------------------------------------------------------- in the process that is forked


def _poll(pid: int, children: set[int]) -> int | None:
    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        return None
    children.discard(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _become(request: dict[str, Any]) -> None:
    """What stands between fork and exec elsewhere."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)


def _serve() -> list[str] | None:
    """Fork on request until requests end; returns, in a child, with its arguments."""
    children: set[int] = set()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "poll" in request:
            reply = _poll(request["poll"], children)
        elif pid := os.fork():
            children.add(pid)
            reply = pid
        else:
            _become(request)
            return list(request["arguments"])
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    return None


def main() -> None:
    for point in entry_points(group="coffre.commands"):
        if point.name not in _LEFT_OUT:
            point.load()
    for name in _OBJECTS:
        import_module(name)
    gc.freeze()
    if (arguments := _serve()) is not None:
        from coffre.cli import main as coffre

        sys.argv = ["coffre", *arguments]
        coffre()


if __name__ == "__main__":
    main()
