"""What must be true when a run is over: of every key's history, of every shard, and of what the nodes say."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from coffre.client import AsyncClient, ClientOptions, connect
from coffre.cluster.errors import NotFound, Unavailable
from coffre.dev.local_cluster import LocalCluster

from tests.chaos.load import BUCKET, KEYS, body_of, value_of
from tests.patience import PATIENCE_SECONDS
from tests.simulation.history import NEVER, Kind, Operation
from tests.simulation.linearizability import is_linearizable, shortest_violation

__all__ = [
    "check_held_up",
    "check_redundancy",
    "count",
    "final_reads",
    "history",
    "judge",
    "write_all_again",
    "write_cold",
]

CLOSING_VALUE = 999_999_999
_COLD = {f"cold{number:02}": 900_000_000 + number for number in range(40)}
_COFFRE = str(Path(sys.executable).with_name("coffre"))
_KINDS = {"put": Kind.PUT, "delete": Kind.DELETE, "read": Kind.READ}

Reads = list[tuple[str, int | None]]  # of a key, and its value; one after the other


def _keys() -> list[str]:
    return [f"k{number:02}" for number in range(KEYS)]


def _connect(cluster: LocalCluster) -> Any:  # a coroutine of an AsyncClient
    return connect(cluster.client_config(), options=ClientOptions(patience=PATIENCE_SECONDS))


# ------------------------------------------------------------------ what was read and written


async def write_cold(cluster: LocalCluster) -> None:
    """What is written once, before anything goes wrong, and has to outlive every node that it was written to."""
    async with await _connect(cluster) as client:
        for key, value in _COLD.items():
            await client.put(BUCKET, key, body_of(value))


async def final_reads(cluster: LocalCluster, held_up: set[str] | None = None) -> Reads:
    """Every key as somebody reads it who was not there before, then what a list shows; each must be readable.

    A write of unknown outcome may still arrive between the two (from a buffer of the network, or since whom a reader
    did not hear answers the next one), so they are reads one after the other, and their history has to be lawful.

    `held_up`: takes keys whose newest version nobody can decide about, since a lost node that is still consulted may
    have had the shard that is missing (docs/repair.md, "What stays undecided").
    """
    found: Reads = []
    async with await _connect(cluster) as client:
        for key in _keys():
            try:
                found.append((key, await _read(client, key)))
            except Unavailable:
                if held_up is None or not client.cluster_map.lost:
                    raise
                held_up.add(key)
        for key, value in _COLD.items():
            assert value_of(await client.get(BUCKET, key)) == value, f"{key} is not what was written"
        if not held_up:
            found += await _listed(client)
    return found


async def _read(client: AsyncClient, key: str, version: str | None = None) -> int | None:
    try:
        return value_of(await client.get(BUCKET, key, version=version))
    except NotFound:
        return None


async def _listed(client: AsyncClient) -> Reads:
    """What a list says of every key: its value, or None where it is not there."""
    listed = {one.key: one.version async for one in client.list(BUCKET) if not isinstance(one, str)}
    assert listed.keys() >= _COLD.keys(), "a list leaves out what was written before anything went wrong"
    assert listed.keys() <= {*_keys(), *_COLD}, "a list shows what nobody wrote"
    found: Reads = []
    for key in _keys():
        value = await _read(client, key, listed[key]) if key in listed else None
        if (
            key in listed and value is None
        ):  # overwritten or deleted since, or never there: what is there now tells
            now = await _read(client, key)
            assert now is not None, f"{key} is listed and cannot be read"
            found.append((key, now))
        else:
            found.append((key, value))
    return found


def check_held_up(held_up: set[str], operations: list[Operation]) -> None:
    """Only a write that nobody was told of may stand in the way: no write of the key was acknowledged that began
    later than the last one of unknown outcome."""
    for key in held_up:
        writes = [one for one in operations if one.key == key and one.kind is not Kind.READ]
        unknown = max((one.began for one in writes if one.ended == NEVER), default=-1)
        known = max((one.began for one in writes if one.ended != NEVER), default=-1)
        assert unknown > known, f"{key} cannot be read, and its last write was acknowledged"


async def write_all_again(cluster: LocalCluster) -> dict[str, int | None]:
    """Write every key once more, which ends what died writers left: nodes decide about it after an hour only, and the
    move that is under way waits for that. What is to be read from now on."""
    async with await _connect(cluster) as client:
        for key in _keys():
            await client.put(BUCKET, key, body_of(CLOSING_VALUE))
    return dict.fromkeys(_keys(), CLOSING_VALUE)


def history(records: Iterable[Path], final: Reads) -> list[Operation]:
    """What all clients did, and the final reads, in events of one order."""
    events: list[dict[str, Any]] = []
    for record in records:
        lines = record.read_bytes().split(b"\n")
        events += [json.loads(line) for line in lines[:-1]]  # a killed client's last line may be half a line
    events.sort(key=lambda event: (event["at"], "end" in event))
    running: dict[int, Operation] = {}
    done: list[Operation] = []
    for tick, event in enumerate(events):
        if "id" in event:
            running[event["id"]] = Operation(
                _KINDS[event["kind"]], event["key"], str(event["id"]), tick, event["value"]
            )
            continue
        operation = running.pop(event["end"])
        if event["outcome"] == "ok":
            operation.ended = tick
            if operation.kind is Kind.READ:
                operation.value = event["value"]
            done.append(operation)
        elif event["outcome"] == "unknown":
            done.append(operation)
    done += [operation for operation in running.values() if operation.kind is not Kind.READ]
    tick = len(events)
    for key, value in final:
        done.append(Operation(Kind.READ, key, "check", tick, value, ended=tick + 1))
        tick += 2
    return done


def count(operations: list[Operation]) -> str:
    """How many operations of each kind there were."""
    kinds = Counter(operation.kind.value for operation in operations if operation.ended != NEVER)
    unknown = sum(operation.ended == NEVER for operation in operations)
    counts = ", ".join(f"{number} {name}s" for name, number in sorted(kinds.items()))
    return f"{counts} done, {unknown} writes of unknown outcome"


def judge(operations: list[Operation]) -> bool:
    """Whether every key's history is linearizable; prints those that are not."""
    good = True
    for key in sorted({operation.key for operation in operations}):
        of_key = [operation for operation in operations if operation.key == key]
        if not is_linearizable(of_key):
            good = False
            print(f"{key} is not linearizable:")
            for operation in shortest_violation(of_key)[-30:]:
                print(f"  {operation}")
    return good


# ------------------------------------------------------------------ shards, digests, orphans


async def check_redundancy(cluster: LocalCluster, members: set[int]) -> None:
    """Full redundancy, in the right places, returns; all nodes are in step, and nobody holds what is not its own."""
    names = {cluster.map.node(number).node_id for number in members}
    async with await _connect(cluster) as client:
        await _until_nothing(lambda: _missing_shards(client, names))
    await _until_nothing(lambda: asyncio.to_thread(_complaints, cluster, names))


async def _until_nothing(look: Any) -> None:  # a function whose coroutine gives lines
    end = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while lines := await look():
        assert asyncio.get_running_loop().time() < end, "\n".join(lines)
        pace_seconds = 0.5
        await asyncio.sleep(pace_seconds)


async def _missing_shards(client: AsyncClient, names: set[str]) -> list[str]:
    found = []
    for key in (*_keys(), *_COLD):
        places = await client.locate(BUCKET, key)
        good = {place.shard_index for place in places if place.state == "ok"}
        where = {place.node_id for place in places}
        if len(good) < 6 or len(where) < 6 or not where <= names:
            found.append(f"{key}: {places}")
    return found


def _ask(cluster: LocalCluster, *command: str) -> Any:  # JSON
    done = subprocess.run(
        [_COFFRE, *command, "--operator", str(cluster.operator_config()), "--json"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return json.loads(done.stdout) if done.returncode == 0 else done.stdout + done.stderr


def _complaints(cluster: LocalCluster, names: set[str]) -> list[str]:
    """What the shipped commands say that should not be said of a cluster that is well."""
    doctor, status, repair = (
        _ask(cluster, "doctor"),
        _ask(cluster, "cluster", "status"),
        _ask(cluster, "repair", "status"),
    )
    if failed := [said for said in (doctor, status, repair) if isinstance(said, str)]:
        return failed
    found = []
    if status["prior_epochs"] or {node["node_id"] for node in status["nodes"]} != names:
        found.append(f"the map is not what was asked for: {status}")
    for node in status["nodes"]:
        if node.get("epoch") != status["epoch"] or node["state"] != "active" or not node.get("writable"):
            found.append(f"{node}")
    for node_id, said in repair.items():
        wrong = said["partitions_in_step"] != said["partitions"] or int(said["held_for_others"])
        spare = {need["spare_shards"] for need in said["census"]} - {2}
        if wrong or spare or said["queue"] or said["parked"] or said["violations"] or said["nodes_down"]:
            found.append(f"{node_id}: {said}")
    return found
