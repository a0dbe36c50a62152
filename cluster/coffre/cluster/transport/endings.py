"""How calls to nodes end, in this system's words, and how a connection is waited for before one is begun."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TypeVar

import grpc
from coffre.cluster.errors import CoffreError, InternalError, NotSent, error_of_status
from coffre.cluster.map import MapNode
from grpc import aio

__all__ = ["Ending", "Endings", "called", "connect", "ending_of", "told", "translate"]

_STATUS_POLLS = 200
_STATUS_POLL_SECONDS = 0.005
_REASON_SECONDS = 0.5
_READY = grpc.ChannelConnectivity.READY
_BROKEN = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)
_Reply = TypeVar("_Reply")


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ended."""

    status: grpc.StatusCode
    details: str | None


def ending_of(error: aio.AioRpcError) -> Ending:
    """The status and the words of a call's error."""
    return Ending(error.code(), error.details())


class Endings:
    """Both statuses that gRPC may give a call of streamed requests.

    When a node refuses a shard while more of it is on the way, the message under way fails, and grpc.aio
    records that as INTERNAL, shortly before or after the status that the node sent, and one overwrites the
    other. Only the node's says whether to try again.
    """

    def __init__(self, call: aio.Call) -> None:
        self._call = call
        self._first: Ending | None = None
        call.add_done_callback(lambda _: self._note())

    def _note(self) -> None:
        # Called with the first status alone. Both coroutines end at once; a task would come too late.
        self._first = Ending(_result_now(self._call.code()), _result_now(self._call.details()))

    async def of_node(self, error: aio.AioRpcError) -> Ending:
        """The ending that is not `error`, the failure of a message; without one the connection broke."""
        own = ending_of(error)
        if own.status is not grpc.StatusCode.INTERNAL:
            return own
        if self._first is not None and self._first != own:
            return self._first
        for _ in range(_STATUS_POLLS):  # gRPC tells nobody that it has overwritten a status
            now = Ending(await self._call.code(), await self._call.details())
            if now != own:
                return now
            await asyncio.sleep(_STATUS_POLL_SECONDS)
        return Ending(grpc.StatusCode.UNAVAILABLE, "the node ended the call and did not say why")


def _result_now(coroutine: Coroutine[object, object, _Reply]) -> _Reply:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: _Reply = stop.value
        return result
    coroutine.close()
    raise InternalError("gRPC reports the end of a call that has no status")


async def connect(
    node: MapNode,
    channel: aio.Channel,
    ask: Callable[[float], Awaitable[object]],
    timeout: float,
    *,
    wait: bool = False,
) -> None:
    """Return when there is a connection. Raises `NotSent`, at once when it is refused unless `wait` is said.

    `ask`: a call that changes nothing, with a deadline; how it ends says why there is no connection.
    """
    try:
        state = channel.get_state(try_to_connect=True)
        if state is _READY:
            return
        async with asyncio.timeout(timeout):
            while state is not _READY:
                if state in _BROKEN and not wait:
                    raise await _why_not(node, ask)
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
    except TimeoutError:
        raise NotSent(
            f"{called(node)}: no connection within {timeout:g} s",
            node=node.node_id,
            details=f"{node.node_id} ({node.address})",
        ) from None
    except aio.UsageError:
        raise NotSent(f"the connection to {called(node)} was closed", node=node.node_id) from None


async def _why_not(node: MapNode, ask: Callable[[float], Awaitable[object]]) -> NotSent:
    try:
        await ask(_REASON_SECONDS)
    except aio.AioRpcError as error:
        why = translate(node, ending_of(error), _REASON_SECONDS)
        return NotSent(str(why), node=why.node, details=why.details)
    return NotSent(f"{called(node)}: the connection was refused a moment ago", node=node.node_id)


_TLS_TRACES = ("ssl", "tls", "handshake", "certificate", "verification", "peer name")
# An address, as gRPC writes it into its own words: they are for administrators.
_ADDRESS = re.compile(
    r"\b(?:ipv4|ipv6|unix|dns)(?::|%3A)|\b\d{1,3}(?:\.\d{1,3}){3}\b|\[[0-9a-fA-F]*:[0-9a-fA-F:]*\]"
)


def translate(node: MapNode, ending: Ending, timeout: float) -> CoffreError:
    """The error that a call ended with. The status alone decides the class; the text is for people."""
    status = ending.status
    words = " ".join((ending.details or "no reason was given").split())
    detail = words
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        detail = f"no answer within {timeout:g} s"
    elif _ADDRESS.search(words) or node.address in words:
        reason = words.rpartition(": ")[2]
        detail = "it cannot be reached" + ("" if _ADDRESS.search(reason) else f": {reason}")
    if status in _CONNECTION_STATUSES and any(trace in words.lower() for trace in _TLS_TRACES):
        detail += (
            "; check that both certificates are valid and of this cluster, and that the node's says the same "
            "server, site, operator and jurisdiction as the map (coffre pki show)"
        )
    return told(node, status.value[0], detail, "" if detail == words else words)


def told(node: MapNode, code: int, text: str, words: str = "") -> CoffreError:
    """What a node, or the way to it, ended a call with."""
    details = f"{node.node_id} ({node.address})" + (f": {words}" if words else "")
    return error_of_status(code, f"{called(node)}: {text}", node=node.node_id, details=details)


def called(node: MapNode) -> str:
    """A node, as messages to people name it."""
    return f"node {node.node_id}"


_CONNECTION_STATUSES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED)
