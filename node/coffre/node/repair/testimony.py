"""What nodes have seen of each other's stores: a node whose disk was lost or rolled back never votes under its name.

docs/repair.md, "A node that forgot".
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Collection, Sequence

from coffre.cluster.clock import Clock
from coffre.cluster.errors import CoffreError, ConfigurationError, IntegrityError, RetryableError
from coffre.cluster.map import ClusterMap
from coffre.cluster.transport import Transport
from coffre.node.following import ClockAsking, PeerClocks
from coffre.node.store import ShardStore, StoreIdentity
from coffre.proto import coffre_pb2 as pb

__all__ = ["await_testimony", "check_memory", "check_unknown", "judge", "witness"]

_log = logging.getLogger("coffre.node")
_SEEN = struct.Struct(">16sQ")  # store id, highest commit
_NOTHING = StoreIdentity(b"", 0)
_ASK_SECONDS = 0.5
_TIMEOUT_SECONDS = 3.0
_TELL_EVERY = 60  # asks between two lines in the log


async def witness(store: ShardStore, node_id: str, store_id: bytes, commits: int) -> StoreIdentity:
    """Remember the highest commit of another node's store, and tell what is remembered.

    The store that was seen first under a name is the only one that may ever have it.
    """
    title = f"peer {node_id}"
    try:
        raw = await store.note(title)
    except IntegrityError as error:
        _log.error("what this node knew of another one's disk is lost; others know it, too: %s", error)
        raw = b""
    seen = StoreIdentity(*_SEEN.unpack(raw)) if len(raw) == _SEEN.size else _NOTHING
    if len(store_id) != 16 or seen.store_id not in (b"", store_id) or commits <= seen.commits:
        return seen
    try:
        await store.keep_note(title, _SEEN.pack(store_id, commits))
    except RetryableError as error:  # this disk takes nothing; others remember it, too
        _log.info("what was told of another node's disk is not kept", extra={"error": type(error).__name__})
    return seen


def check_memory(found: StoreIdentity | None, store_id: bytes, answers: Sequence[StoreIdentity]) -> None:
    """Raise `ConfigurationError` when somebody has seen another store under this node's name than the one that it has,
    `store_id`, or more of it than `found`. None: it was empty."""
    for seen in answers:
        if not seen.store_id:
            continue
        if found is None or seen.store_id != store_id:
            here = "is empty" if found is None else f"holds store {store_id.hex()[:8]}"
            raise ConfigurationError(
                f"is this the right disk? The other nodes have known this node with another disk (store "
                f"{seen.store_id.hex()[:8]}), and the directory that node.toml calls data {here}. See whether the disk "
                "is mounted (findmnt) and the path is right, and start it again there: then nothing is lost. Only if "
                "that disk is gone for good, what it promised is lost, too, and it must not come back under its old "
                "name: give it a new one (coffre cluster replace)"
            )
        if seen.commits > found.commits:
            raise ConfigurationError(
                f"this node's disk is older than it was (commit {found.commits}, others have seen "
                f"{seen.commits}): is it a copy, or a snapshot, and the right disk is elsewhere? Then start it there. "
                "Else it has forgotten what it promised, so it must not come back under its old name; give it a new "
                "one (coffre cluster replace)"
            )


def judge(
    found: StoreIdentity | None, own: StoreIdentity, others: int, answers: Sequence[StoreIdentity]
) -> bool:
    """Whether a node may serve, after `answers` of `others` nodes; `found` is what it had on its disk at start.

    False: wait for more answers. Raises `ConfigurationError` when somebody has seen more of it than it has.
    One answer is enough for a store that remembers; a new one needs those of most, since one node may have missed it.
    """
    check_memory(found, own.store_id, answers)
    needed = others // 2 + 1 if found is None else 1
    return len(answers) >= min(needed, others)


async def check_unknown(transport: Transport, cluster_map: ClusterMap, others: Collection[int]) -> None:
    """Ask the other nodes once. Raises `ConfigurationError` when one that answers has seen this node before."""
    request = pb.DigestsRequest(epoch=cluster_map.epoch)

    async def ask(node: int) -> bool:
        try:
            reply = await transport.digests(node, request, _TIMEOUT_SECONDS)
        except CoffreError:
            return False
        return bool(reply.witnessed_store_id)

    seen = [node for node, has in zip(others, await asyncio.gather(*map(ask, others)), strict=True) if has]
    if seen:
        names = ", ".join(cluster_map.node(number).node_id for number in seen)
        raise ConfigurationError(
            f"{names} has seen this node before, with another disk than this empty one: is the right disk mounted, "
            "and is data in node.toml the right path? Start it without --new-cluster; if its disk is lost, give it a "
            "new name (coffre cluster replace)"
        )


async def await_testimony(
    transport: Transport,
    epoch: int,
    others: Collection[int],
    found: StoreIdentity | None,
    own: StoreIdentity,
    clock: Clock,
    clocks: PeerClocks | None = None,
) -> None:
    """Ask the other nodes until enough have answered. Raises `ConfigurationError` as `judge` does.

    `clocks`: learns what time it is at those that answer.
    """
    # The number that was found, not today's: an answer must not count commits that this start made.
    commits = 0 if found is None else found.commits
    request = pb.DigestsRequest(epoch=epoch, store_id=own.store_id, commits=commits)

    ahead_ms: dict[int, float] = {}

    async def ask(node: int) -> StoreIdentity | None:
        asking = ClockAsking.begin(clock)
        try:
            reply = await transport.digests(node, request, _TIMEOUT_SECONDS)
        except CoffreError:
            return None
        ahead = asking.ahead_ms(clock, reply.unixtime_ms)
        if ahead is not None:
            ahead_ms[node] = ahead
        return StoreIdentity(reply.witnessed_store_id, reply.witnessed_commits)

    asked = 0
    while True:
        begun = ClockAsking.begin(clock)
        answers = [answer for answer in await asyncio.gather(*map(ask, others)) if answer is not None]
        if judge(found, own, len(others), answers):
            if clocks is not None:
                clocks.compare(ahead_ms, others, begun)
            return
        ahead_ms.clear()
        if asked % _TELL_EVERY == 0:
            _log.warning("waiting for other nodes", extra={"answers": len(answers), "of": len(others)})
        asked += 1
        await clock.sleep(_ASK_SECONDS)
