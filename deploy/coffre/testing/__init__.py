"""For the tests of applications: a whole cluster in this process, in memory, ready within milliseconds.

>>> from coffre.testing import MemoryCluster
>>> with MemoryCluster() as cluster, cluster.connect_sync() as client:
...     _ = client.put("records", "patient/1.json", b"{}")
...     cluster.stop(1, 4)
...     client.get("records", "patient/1.json")
b'{}'

What runs is what ships: the client with its sealing and coding, the nodes' handlers and their votes. What is in memory
are the disks, the network and coordination. `coffre.testing.fixtures` is a pytest plugin. For real processes there is
`coffre dev up`.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from coffre.client import AsyncClient, Client, ClientOptions
from coffre.cluster.clock import Clock
from coffre.cluster.errors import InvalidArgument
from coffre.dev.in_process import QUICK, InProcessCluster, in_process_cluster

__all__ = ["QUICK", "MemoryCluster"]


class MemoryCluster:
    """Nodes `1..n` in memory, each at a site and with an operator of its own, and the clients of any tenant.

    `k` and `m`: how objects are coded (default 4+2). `nodes`: default k + m. `versions_kept`: of each object. `clock`:
    default the machine's; what is passed in decides stamps and ages. Everything belongs to one event loop: that of the
    first client. A cluster is empty at first and forgets all when it is dropped.
    """

    def __init__(
        self,
        k: int = 4,
        m: int = 2,
        *,
        nodes: int | None = None,
        versions_kept: int = 1,
        clock: Clock | None = None,
    ) -> None:
        self._inside: InProcessCluster = in_process_cluster(
            k, m, nodes=nodes, versions_kept=versions_kept, clock=clock
        )
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sync: list[Client] = []

    @property
    def nodes(self) -> tuple[int, ...]:
        """The numbers of all nodes."""
        return tuple(node.number for node in self._inside.cluster_map.nodes)

    def connect(self, tenant: str = "clinic", *, options: ClientOptions = QUICK) -> AsyncClient:
        """A client of a tenant, to be called in a running event loop; close it, or leave that to `aclose`.

        `options`: default short waits, so that a test meets errors quickly. Raises `InvalidArgument` when clients of
        another event loop use the cluster.
        """
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise InvalidArgument("a MemoryCluster belongs to one event loop: make another one for this one")
        self._loop = loop
        return self._inside.client(tenant, options=options, clock=self._clock)

    def connect_sync(self, tenant: str = "clinic", *, options: ClientOptions = QUICK) -> Client:
        """The same for code without an event loop; one such client per cluster, from any threads.

        Raises `InvalidArgument` when there is one already, or clients of an event loop.
        """

        async def connect() -> AsyncClient:
            return self.connect(tenant, options=options)

        client = Client(connect)
        self._sync.append(client)
        return client

    def stop(self, *nodes: int) -> None:
        """Let nodes answer nobody, as if they had been killed; what they hold stays. Raises `InvalidArgument`."""
        for number in nodes:
            if number not in self.nodes:
                raise InvalidArgument(f"there is no node {number}")
        self._inside.network.down.update(nodes)

    def start(self, *nodes: int) -> None:
        """Let nodes answer again; without arguments, all of them."""
        self._inside.network.down.difference_update(nodes or self.nodes)

    def close(self) -> None:
        """End what `connect_sync` made."""
        self.start()
        for client in self._sync:
            client.close()

    async def aclose(self) -> None:
        """End every client that `connect` made, in their event loop."""
        await self._inside.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
