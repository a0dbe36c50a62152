"""Carrying out a change of the map: begin it, wait until everything has moved, finish it.

A change is two maps: one that consults the prior placements too, and, once every primary has reported every partition
as moved, one that does not (docs/consistency.md, "Changing the map"). All state is in the published map and with the
nodes. So whoever is interrupted begins again with the same wish, on any machine: what is done already is left alone.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from coffre.cluster.clock import Clock
from coffre.cluster.errors import Conflict, PermissionDenied, RetryableError, Unsupported
from coffre.cluster.identity import Role, TlsFiles, load_tls, parse_certificate, parse_key, read_certificate
from coffre.cluster.map import ClusterMap, newer_map, read_map, sign_map, verify_map, write_map
from coffre.cluster.membership.moves import Move, MoveReport, MoveReports
from coffre.cluster.membership.next_map import finish_move
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = [
    "FileMapPublisher",
    "MapPublisher",
    "MapSigner",
    "MoveProgress",
    "ask_reports",
    "begin_change",
    "follow_move",
    "progress_of",
]

POLL_SECONDS = 2.0
REPORT_TIMEOUT_SECONDS = 5.0
PATIENCE_SECONDS = 60.0
_PACE_SAMPLES = 150  # five minutes of polls


class MapPublisher(Protocol):
    """Where the current map is, and where a new one goes so that every member learns of it."""

    async def current(self) -> ClusterMap:
        """The newest map, verified."""

    async def publish(self, signed: bytes, expected_epoch: int) -> None:
        """Make `signed` the newest map. Raises `Conflict` unless `expected_epoch` is the newest one's."""


class FileMapPublisher:
    """A map in a file: for a cluster that is stopped, or whose files are carried to the nodes by other means."""

    def __init__(self, path: Path, authority: Path, clock: Clock) -> None:
        self._path = path
        self._authority = authority
        self._clock = clock

    async def current(self) -> ClusterMap:
        return read_map(self._path, self._authority)[0]

    async def publish(self, signed: bytes, expected_epoch: int) -> None:
        candidate = verify_map(signed, read_certificate(self._authority), self._clock.unixtime_ms())
        with _locked(self._path.with_name(f"{self._path.name}.lock")):
            current = await self.current()
            if current.epoch != expected_epoch:
                raise Conflict(
                    f"the map in {self._path} has epoch {current.epoch} by now; look at it, then try again"
                )
            newer_map(current, candidate)
            write_map(self._path, signed)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time. The lock goes with the process, whatever becomes of it; the empty file stays."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict("another command is publishing a map right now; try again") from None
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class MapSigner:
    """An operator's certificate and key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def load(cls, files: TlsFiles, clock: Clock) -> MapSigner:
        """Read them. Raises `ConfigurationError`, `PermissionDenied` when they are not an operator's."""
        material = load_tls(files, clock)
        if material.identity.role is not Role.OPERATOR:
            raise PermissionDenied(
                f"{files.certificate} is not an operator's certificate; only operators sign maps"
            )
        certificate = parse_certificate(material.certificate, str(files.certificate))
        return cls(certificate, parse_key(material.key, str(files.key)))

    def sign(self, cluster_map: ClusterMap) -> bytes:
        """The signed map. Raises `PermissionDenied` unless this is an operator of the map's cluster."""
        return sign_map(cluster_map, self.certificate, self.key)


async def begin_change(publisher: MapPublisher, signer: MapSigner, planned: ClusterMap) -> ClusterMap:
    """Publish the map that was planned on the one before it, and return it.

    Raises `Conflict` when another map was published since the plan was made: the wish must be looked at again.
    """
    await publisher.publish(signer.sign(planned), planned.epoch - 1)
    return planned


# ------------------------------------------------------------------ following a move


@dataclass(frozen=True, slots=True)
class MoveProgress:
    """How far a move has come. `done` and `total` count partitions, once for each node that must report them."""

    epoch: int
    done: int
    total: int
    by_node: dict[int, tuple[int, int]]  # done and expected
    silent: tuple[int, ...]  # nodes that must report and did not answer
    seconds_left: float | None  # None: not known

    @property
    def is_finished(self) -> bool:
        """Whether every partition that the change moves has been moved."""
        return self.done == self.total


class _Pace:
    """How fast a count grows, over the latest polls."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=_PACE_SAMPLES)

    def seconds_left(self, now: float, done: int, total: int) -> float | None:
        self._samples.append((now, done))
        if done == total:
            return 0.0
        then, before = self._samples[0]
        return (now - then) * (total - done) / (done - before) if done > before else None


async def ask_reports(move: Move, reports: MoveReports) -> dict[int, MoveReport]:
    """What the nodes report that have to; those that do not answer in time are left out."""

    async def ask(node: int) -> MoveReport | None:
        try:
            return await reports.moved(node, REPORT_TIMEOUT_SECONDS)
        except (RetryableError, Unsupported):  # an older release may still run on it
            return None

    found = await asyncio.gather(*(ask(node) for node in move.nodes))
    return {node: report for node, report in zip(move.nodes, found, strict=True) if report is not None}


def progress_of(move: Move, found: dict[int, MoveReport], seconds_left: float | None = None) -> MoveProgress:
    """The progress that these reports make."""
    by_node = {node: (move.done(node, found.get(node)), move.expected(node)) for node in move.nodes}
    silent = tuple(node for node in move.nodes if node not in found)
    done = sum(done for done, _ in by_node.values())
    return MoveProgress(move.epoch, done, move.total, by_node, silent, seconds_left)


async def follow_move(
    publisher: MapPublisher,
    signer: MapSigner,
    reports: MoveReports,
    clock: Clock,
    on_progress: Callable[[MoveProgress], None],
) -> ClusterMap:
    """Wait until everything has moved, and publish the map that ends the move; return it.

    A move that somebody else widens or ends meanwhile is followed on. Returns at once when nothing is moving. Raises
    as the publisher; retryable errors only when they last for a minute.
    """
    move, pace, failing_since = None, _Pace(), None
    while True:
        try:
            current = await publisher.current()
            if not current.prior:
                return current
            if move is None or move.epoch != current.epoch:
                move, pace = Move(current), _Pace()
            found = await ask_reports(move, reports)
            progress = progress_of(move, found)
            left = pace.seconds_left(clock.monotonic(), progress.done, progress.total)
            on_progress(progress_of(move, found, left))
            if move.is_finished(found):
                await publisher.publish(signer.sign(finish_move(current)), current.epoch)
                continue  # what is current now is the end, unless something follows it
            failing_since = None
        except Conflict:
            pass  # another command was first: look at what it published
        except RetryableError:
            # Coordination may be starting again; and whether a map was published shows when it is back.
            now = clock.monotonic()
            failing_since = now if failing_since is None else failing_since
            if now - failing_since > PATIENCE_SECONDS:
                raise
        await clock.sleep(POLL_SECONDS)
