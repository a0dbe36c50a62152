"""One client process of a chaos run: random operations on a few keys, each written down before and after.

The record is one JSON line per event on standard output; what has no second line has an outcome that nobody knows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from coffre.client import AsyncClient, ClientOptions, connect
from coffre.cluster.errors import CoffreError, DeadlineExceeded, NotFound, OutcomeUnknown

BUCKET = "chaos"
OPTIONS = ClientOptions(timeout=2.0, patience=0.5, stall_timeout=2.0, hedge_delay=0.02)
TASKS = 4
KEYS = 16
PAUSE_SECONDS_MAX = 0.04
LARGE_BYTES = 1_300_000  # two segments


def body_of(value: int) -> bytes:
    """Bytes that name their value throughout, so that a mixture of two would not pass for either."""
    chance = random.Random(value)
    size_bytes = LARGE_BYTES if value % 23 == 0 else chance.randrange(20, 6000)
    word = b"value %d of %016x " % (value, chance.getrandbits(64))
    return (word * (size_bytes // len(word) + 1))[:size_bytes] + word


def value_of(body: bytes) -> int:
    """The value that a body names, or -1 when it is not exactly what was written."""
    words = body.split(b" ", 2)
    value = int(words[1]) if len(words) > 1 and words[1].isdigit() else -1
    return value if value >= 0 and body == body_of(value) else -1


class Recorder:
    """Writes events down at once, with the machine's monotonic clock, which all its processes share."""

    def __init__(self, first_number: int) -> None:
        self._next = first_number

    def begin(self, kind: str, key: str, value: int | None) -> int:
        self._next += 1
        self._write({"id": self._next, "at": time.monotonic_ns(), "kind": kind, "key": key, "value": value})
        return self._next

    def end(self, number: int, outcome: str, value: int | None = None) -> None:
        """`outcome`: ok, failed (for sure) or unknown."""
        self._write({"end": number, "at": time.monotonic_ns(), "outcome": outcome, "value": value})

    @staticmethod
    def _write(event: dict[str, object]) -> None:
        os.write(sys.stdout.fileno(), json.dumps(event).encode() + b"\n")


async def operate(client: AsyncClient, recorder: Recorder, chance: random.Random, value: int) -> None:
    """One random operation."""
    key = f"k{chance.randrange(KEYS):02}"
    choice = chance.random()
    kind = "put" if choice < 0.4 else "delete" if choice < 0.5 else "read"
    number = recorder.begin(kind, key, value if kind == "put" else None)
    try:
        if kind == "put":
            await client.put(BUCKET, key, body_of(value))
            recorder.end(number, "ok")
        elif kind == "delete":
            await client.delete(BUCKET, key)
            recorder.end(number, "ok")
        else:
            recorder.end(number, "ok", value_of(await client.get(BUCKET, key)))
    except NotFound:
        recorder.end(number, "ok", None)
    except (OutcomeUnknown, DeadlineExceeded):
        recorder.end(number, "unknown" if kind != "read" else "failed")
    except CoffreError as error:
        recorder.end(number, "failed")
        print(f"{kind} {key}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def print_tasks() -> None:
    """Say where every task waits, and end: what the driver asks of a client that does not end by itself."""
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stderr)
    sys.stderr.flush()
    os._exit(3)


async def run(config: Path, index: int, seed: int, seconds: float) -> None:
    recorder = Recorder(index * 10_000_000)
    until = time.monotonic() + seconds
    values = iter(range(index * 10_000_000 + 1, (index + 1) * 10_000_000))

    async def task(place: int, client: AsyncClient) -> None:
        chance = random.Random(seed * 1000 + index * 10 + place)
        while time.monotonic() < until:
            await operate(client, recorder, chance, next(values))
            pace_seconds = chance.random() * PAUSE_SECONDS_MAX
            await asyncio.sleep(pace_seconds)

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print_tasks)
    async with await connect(config, options=OPTIONS) as client:
        await asyncio.gather(*(task(place, client) for place in range(TASKS)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    asyncio.run(run(given.config, given.index, given.seed, given.seconds))


if __name__ == "__main__":
    main()
