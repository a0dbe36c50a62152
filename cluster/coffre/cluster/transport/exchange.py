"""Batches to one node over one gRPC call that stays open: a message costs a third of what a call of its own would."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from coffre.cluster.errors import Cancelled, CoffreError, DeadlineExceeded, Unavailable
from coffre.cluster.transport.reading import end
from coffre.proto import coffre_pb2 as pb
from grpc import aio

__all__ = ["Batch", "Exchange"]

Batch = pb.BatchRequest | pb.PackedBatchRequest
_NUMBERS = 1 << 32
Call = aio.StreamStreamCall[Batch, pb.BatchReply]


class Exchange:
    """One open call. It ends with the first failure of the call or of a deadline; the next batch needs another one.

    `translate` makes the error of the call's end. Replies come in any order.
    """

    def __init__(self, call: Call, translate: Callable[[aio.AioRpcError], CoffreError], node: str) -> None:
        self._call = call
        self._translate = translate
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[pb.BatchReply]] = {}
        self._number = 0
        self._writing = asyncio.Lock()
        self._writes: set[asyncio.Task[None]] = set()
        self._idle: asyncio.Future[None] | None = None
        self._reading = self._loop.create_task(self._read())
        self.error: CoffreError | None = None  # why nothing more can be sent

    async def send(self, batch: Batch, timeout: float) -> pb.BatchReply:
        """One round trip. Raises the error of the call's end, `DeadlineExceeded`, or `Unavailable`.

        A caller that is cancelled gives up the answer alone; the batch may still be carried out.
        """
        if self.error is not None:
            raise self.error
        number = self._number = (self._number + 1) % _NUMBERS
        batch.number = number
        reply: asyncio.Future[pb.BatchReply] = self._loop.create_future()
        self._waiting[number] = reply
        timer = self._loop.call_later(timeout, self._expire, reply, timeout)
        writing = self._loop.create_task(self._write(batch, reply))
        self._writes.add(writing)
        writing.add_done_callback(self._writes.discard)
        try:
            return await reply
        finally:
            timer.cancel()
            self._waiting.pop(number, None)
            if self._idle is not None and not self._waiting and not self._idle.done():
                self._idle.set_result(None)

    async def _write(self, batch: Batch, reply: asyncio.Future[pb.BatchReply]) -> None:
        """A task of its own: grpc.aio ends the whole call when a task is cancelled that writes to it."""
        try:
            async with self._writing:
                if not reply.done():
                    await self._call.write(batch)
        except (aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the call ended; its status, which `_read` is told, says why
        except Exception as error:  # noqa: BLE001 - whatever it is, it is for the caller
            if not reply.done():
                reply.set_exception(error)

    async def finish(self, grace: float | None) -> None:
        """Let what is under way end, for `grace` seconds at most (None: not at all), and close the call."""
        if grace and self._waiting:
            self._idle = self._loop.create_future()
            await asyncio.wait([self._idle], timeout=grace)
        self._end(Cancelled(f"the connection to {self._node} was closed during the call"))
        await end(self._call, self._reading, *self._writes)

    def _expire(self, reply: asyncio.Future[pb.BatchReply], timeout: float) -> None:
        if not reply.done():
            # What is written behind a message that a node does not take would wait as long again.
            reply.set_exception(DeadlineExceeded(f"{self._node}: no answer within {timeout:g} s"))
            self._end(Unavailable(f"{self._node} did not answer an earlier message in time"))

    async def _read(self) -> None:
        """A task of its own, which nobody cancels: it ends with the call (coffre.cluster.transport.reading)."""
        error: CoffreError = Unavailable(f"{self._node} ended the exchange")
        try:
            while True:
                reply = await self._call.read()
                if not isinstance(reply, pb.BatchReply):
                    break
                waiting = self._waiting.get(reply.number)
                if waiting is not None and not waiting.done():
                    waiting.set_result(reply)
        except aio.AioRpcError as failure:
            error = self._translate(failure)
        except asyncio.CancelledError:
            error = Cancelled(f"the connection to {self._node} was closed during the call")
        finally:
            self._end(error)

    def _end(self, error: CoffreError) -> None:
        if self.error is None:
            self.error = error
        for reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(self.error)
                reply.exception()  # its caller may have been cancelled
        self._call.cancel()
        for writing in self._writes:
            writing.cancel()  # a first write waits for ever when its call ends before the headers were sent
