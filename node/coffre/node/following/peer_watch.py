"""What a node makes of the other nodes: who answers late, keeps going away, or is down. It tells, and never acts.

An operator hears it from every node (`Status`), so one node that lies or is badly connected brands nobody.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from coffre.cluster.clock import Clock
from coffre.cluster.errors import CoffreError, RetryableError
from coffre.cluster.health import Health, HealthLimits, HealthTracker
from coffre.cluster.map import NodeState
from coffre.cluster.transport import Transport
from coffre.node.following.clocks import ClockAsking, PeerClocks
from coffre.node.following.mapholder import MapHolder
from coffre.proto import coffre_pb2 as pb

__all__ = ["PeerWatch", "WatchOptions"]

ASK_TIMEOUT_SECONDS = 2.0
_ANSWERS_WORTH = 12  # how many answers the judgement of slowness looks back
_CONDITIONS = {
    Health.SLOW: pb.PEER_CONDITION_SLOW,
    Health.FLAPPING: pb.PEER_CONDITION_FLAPPING,
    Health.DOWN: pb.PEER_CONDITION_DOWN,
}


@dataclass(slots=True)
class WatchOptions:
    """The section [watch] of node.toml. Times in seconds."""

    ask_seconds: float = 5.0  # between two questions to each other node
    grace_seconds: float = 900.0  # an outage so long is waited for; then the node is called lost
    flaps: int = 3  # so often away within the window: flapping
    flap_window_seconds: float = 600.0
    slow_seconds: float = 0.1  # nobody is slow who answers sooner
    slow_factor: float = 5.0  # nor who takes less than so many times as long as the others

    def limits(self) -> HealthLimits:
        """Raises `InvalidArgument`."""
        return HealthLimits(
            grace_seconds=self.grace_seconds,
            flaps=self.flaps,
            flap_window_seconds=self.flap_window_seconds,
            slow_seconds=self.slow_seconds,
            slow_factor=self.slow_factor,
            slow_window_seconds=_ANSWERS_WORTH * self.ask_seconds,
        )


@dataclass(frozen=True, slots=True)
class _Answer:
    waited_seconds: float
    failed: bool
    started_ms: int = 0  # 0: it did not say
    in_order: bool = False  # the process before this one ended as it was told
    ahead_ms: float | None = None  # how far this node's clock is ahead of its; None: that cannot be told


class PeerWatch:
    """Asks every other node of the map how it is, again and again. Memory: a few hundred bytes for each."""

    def __init__(
        self,
        number: int,
        maps: MapHolder,
        transport: Transport,
        clock: Clock,
        options: WatchOptions | None = None,
        clocks: PeerClocks | None = None,
    ) -> None:
        """`clocks`: learns what time it is at the others."""
        self._clocks = clocks
        self._number = number
        self._maps = maps
        self._transport = transport
        self._clock = clock
        self._options = options or WatchOptions()
        self._tracker = HealthTracker(clock, self._options.limits())
        self._watched: frozenset[int] = frozenset()
        self._started_ms: dict[int, int] = {}
        self._since: dict[int, tuple[Health, float]] = {}  # who does not look well, and from when on

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.look()
            await self._clock.sleep(self._options.ask_seconds)

    async def look(self) -> None:
        """Ask everybody once, and judge."""
        others = sorted(
            node.number
            for node in self._maps.map.nodes
            if node.number != self._number and node.state is not NodeState.REMOVED
        )
        self._forget(self._watched.difference(others))
        self._watched = frozenset(others)
        begun = ClockAsking.begin(self._clock)
        answers = dict(zip(others, await asyncio.gather(*map(self._ask, others)), strict=True))
        if self._clocks is not None:
            said = {node: answer.ahead_ms for node, answer in answers.items() if answer.ahead_ms is not None}
            self._clocks.compare(said, others, begun)
        if len(answers) > 1 and all(map(self._is_bad, answers.values())):
            return  # nobody answered in time: that says more of this node, which was paused or is cut off
        for number, answer in answers.items():
            self._note(number, answer)
        self._judge()

    async def _ask(self, number: int) -> _Answer:
        asked = self._clock.monotonic()
        status, failed = pb.StatusReply(), False
        asking, ahead_ms = ClockAsking.begin(self._clock), None
        try:
            status = await self._transport.status(number, ASK_TIMEOUT_SECONDS)
            if status.epoch > self._maps.map.epoch:
                self._maps.behind.set()  # coordination did not tell: it may be down, or not the one where it was told
            ahead_ms = asking.ahead_ms(self._clock, status.unixtime_ms)
        except RetryableError:
            failed = True
        except CoffreError:
            pass  # it refuses, so it is there
        waited_seconds = self._clock.monotonic() - asked
        return _Answer(waited_seconds, failed, status.started_unixtime_ms, status.ended_in_order, ahead_ms)

    def _is_bad(self, answer: _Answer) -> bool:
        return answer.failed or answer.waited_seconds >= self._tracker.limits.stall_seconds

    def _note(self, number: int, answer: _Answer) -> None:
        if answer.failed:
            self._tracker.failed(number, answer.waited_seconds)
            return
        if answer.started_ms:
            if self._started_ms.get(number, answer.started_ms) != answer.started_ms:
                self._tracker.restarted(number, planned=answer.in_order)
            self._started_ms[number] = answer.started_ms
        self._tracker.answered(number, answer.waited_seconds)

    def _judge(self) -> None:
        now = self._clock.monotonic()
        for number in self._watched:
            health = self._tracker.health(number)
            if health not in _CONDITIONS:
                self._since.pop(number, None)
            elif self._since.get(number, (None,))[0] is not health:
                self._since[number] = health, now

    def _forget(self, numbers: frozenset[int]) -> None:
        self._tracker.forget(numbers)
        for number in numbers:
            self._since.pop(number, None)
            self._started_ms.pop(number, None)

    def tell(self, reply: pb.StatusReply) -> None:
        """Add to a status what this node sees of the others."""
        now = self._clock.monotonic()
        reply.peers_watched = len(self._watched)
        for number, (health, since) in sorted(self._since.items()):
            reply.peers.add(
                node_number=number,
                condition=_CONDITIONS[health],
                seconds=now - since,
                latency_seconds=self._tracker.latency_seconds(number) or 0.0,
                falls=self._tracker.falls(number),
                lost=self._tracker.is_lost(number),
            )
