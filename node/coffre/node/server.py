"""One node as a process: TLS, gRPC, health, reflection, background work, and a clean end on SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial

import grpc
from coffre.cluster.clock import Clock
from coffre.cluster.coordination import RemoteCoordination
from coffre.cluster.errors import CoffreError, ConfigurationError, RetryableError
from coffre.cluster.identity import (
    Identity,
    Role,
    load_identity,
    load_tls,
    read_certificate,
    server_credentials,
)
from coffre.cluster.map import ClusterMap, MapNode, read_map, write_map
from coffre.cluster.membership import ClusterMaps, VerifiedMap
from coffre.cluster.transport import GrpcTransport, Transport
from coffre.node.beginnings import check_beginnings, others_of
from coffre.node.config import NodeConfig
from coffre.node.disk import LmdbStore, StoreOwner
from coffre.node.following import (
    CertificateWatch,
    MapHolder,
    PeerClocks,
    PeerWatch,
    Suspensions,
    await_admission,
    is_ahead,
    note_end,
    own_entry,
    read_last_end,
)
from coffre.node.listening import elsewhere
from coffre.node.repair import Repairer, await_testimony
from coffre.node.serving import (
    COORDINATION,
    SERVICE,
    CoordinationServicer,
    Handler,
    Membership,
    Servicer,
    VitalSigns,
    add_servicer,
)
from coffre.node.store import ShardStore
from coffre.proto.coordination_pb2_grpc import add_CoordinationServicer_to_server
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

__all__ = ["serve"]

_log = logging.getLogger("coffre.node")

MESSAGE_BYTES_MAX = 4 << 20
CALLS_MAX = 1024  # every client keeps one open
STOP_GRACE_SECONDS = 3.0
RECLAIM_IDLE_SECONDS = 1.0


async def serve(
    config: NodeConfig, clock: Clock, entropy: Callable[[int], bytes], *, new_cluster: bool = False
) -> None:
    """Run a node until SIGTERM or SIGINT. Raises `ConfigurationError` when it cannot start.

    `new_cluster`: serve before the others have said what they have seen of this node; for the first start alone.
    """
    identity = _own_identity(config, clock)
    await _await_admission(config, identity, clock)
    cluster_map, signed = read_map(config.map, config.tls.authority)
    entry = own_entry(identity, cluster_map)
    await check_beginnings(config, cluster_map, entry, new_cluster=new_cluster)
    _look_around(config, entry)
    config.store.versions_kept = max(policy.versions_kept for policy in cluster_map.policies)
    end, maps = _End(), MapHolder(cluster_map, signed)
    owner = StoreOwner(identity.cluster_id, identity.name)
    store = await LmdbStore.open(config.data, config.store, clock, owner)
    member = Membership(config, maps, entry, clock)
    try:
        suspensions = Suspensions(maps, store, clock)
        await suspensions.load()
        transport = await member.open(entropy)
        handler = Handler(entry.number, entry.node_id, store, maps, clock)
        repairer, watch = _equip(handler, config, entry, store, maps, transport, clock)
        certificates = _certificates(config, entry, clock)
        handler.certificate_expires_ms = certificates.ends["certificate"]
        handler.tellers += [member.tell, await read_last_end(store)]
        handler.serving = new_cluster
        repairer.on_forgotten = partial(end.refuse, handler)
        servicer = Servicer(handler, cluster_map.cluster_id)
        coordination = CoordinationServicer(member.handler, cluster_map.cluster_id)
        member.on_dropped = coordination.end_watches
        server, health_servicer = _server(config, servicer, coordination, clock)
        for service in (SERVICE, ""):  # else the library says SERVING of the second
            await health_servicer.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)
        await server.start()
        try:
            if new_cluster or await _may_serve(handler, cluster_map, entry, transport, store, end.asked):
                handler.serving = True
                background = [
                    asyncio.create_task(_reclaim_forever(store, handler.clocks)),
                    asyncio.create_task(repairer.run()),
                    asyncio.create_task(watch.run()),
                    asyncio.create_task(certificates.run()),
                    *member.start(suspensions),
                ]
                served = member.coordination_failure if member.serves_coordination else None
                signs = VitalSigns(store, health_servicer, clock, served)
                await signs.look()
                background.append(asyncio.create_task(signs.run()))
                _watched(background)
                await health_servicer.set("", health_pb2.HealthCheckResponse.SERVING)
                await member.store_watch.look()
                _say_ready(config, entry, cluster_map.epoch, member.store_watch.trouble)
                await end.asked.wait()
                _log.info("stopping", extra={"node": entry.node_id})
                await health_servicer.enter_graceful_shutdown()
                servicer.end_exchanges()
                coordination.end_watches()
                await server.stop(STOP_GRACE_SECONDS)
                await _rest(background, store)
        finally:
            await server.stop(STOP_GRACE_SECONDS)
    finally:
        await member.close()
        await store.close()
    if end.why is not None:
        raise end.why
    _log.info("stopped", extra={"node": entry.node_id})


def _watched(background: Sequence[asyncio.Task[None]]) -> None:
    """Let the log say which work of this node has ended for good by a bug, and where: nobody waits for it."""

    def ended(task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            # The text may hold a name: only the class and the place are logged.
            _log.critical(
                "work in the background has ended: restart this node",
                extra={"error": type(error).__name__},
                exc_info=error,
            )

    for task in background:
        task.add_done_callback(ended)


async def _rest(background: Sequence[asyncio.Task[None]], store: ShardStore) -> None:
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)
    await note_end(store)


def _look_around(config: NodeConfig, entry: MapNode) -> None:
    """Warn of what lets a node start, and will be in the way."""
    about = {"node": entry.node_id}
    if where := elsewhere(config.listen, entry.address):
        _log.warning("it listens elsewhere than the map says", extra=about | {"reason": where})
    if not os.access(config.map.parent, os.W_OK):
        reason = (
            f"cannot write into {config.map.parent}, where node.toml says that the map is: this node stays at the one "
            "that it has. Let it write there, and restart it"
        )
        _log.error("newer maps cannot be kept", extra=about | {"reason": reason})


def _certificates(config: NodeConfig, entry: MapNode, clock: Clock) -> CertificateWatch:
    tls = load_tls(config.tls)
    ends = {"certificate": tls.expires_unixtime_ms, "authority": tls.authority_expires_unixtime_ms}
    return CertificateWatch(entry.node_id, ends, clock)


def _say_ready(config: NodeConfig, entry: MapNode, epoch: int, trouble: str) -> None:
    about = {"node": entry.node_id, "listen": config.listen, "epoch": epoch}
    if trouble:  # said on its own, too, and again when it is over
        _log.error("ready for objects alone, not for coordination", extra=about | {"reason": trouble})
    else:
        _log.info("serving", extra=about)


class _End:
    """Why and when a node ends: a signal, or what it has learnt of itself."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.why: ConfigurationError | None = None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.asked.set)

    def refuse(self, handler: Handler, error: ConfigurationError) -> None:
        """Answer nobody from now on, and end with this error."""
        handler.serving = False
        self.why = error
        self.asked.set()


def _equip(
    handler: Handler,
    config: NodeConfig,
    entry: MapNode,
    store: ShardStore,
    maps: MapHolder,
    transport: Transport,
    clock: Clock,
) -> tuple[Repairer, PeerWatch]:
    """What looks at the other nodes, and goes by the time that they say it is."""
    number, clocks = entry.number, handler.clocks
    handler.repairs = repairer = Repairer(number, store, maps, transport, clock, config.repair, clocks)
    handler.watch = watch = PeerWatch(number, maps, transport, clock, config.watch, clocks)
    return repairer, watch


async def _may_serve(
    handler: Handler,
    cluster_map: ClusterMap,
    entry: MapNode,
    transport: Transport,
    store: LmdbStore,
    stop: asyncio.Event,
) -> bool:
    """Whether the others have testified; False when this node was told to stop while it waited."""
    others = others_of(cluster_map, entry)
    asking = asyncio.ensure_future(
        await_testimony(
            transport,
            cluster_map.epoch,
            others,
            store.found,
            await store.identity(),
            handler.clocks.clock,
            handler.clocks,
        )
    )
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((asking, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if asking.done():
        asking.result()
        return True
    asking.cancel()
    return False


def _own_identity(config: NodeConfig, clock: Clock) -> Identity:
    identity = load_identity(config.tls, clock)
    if identity.role is not Role.NODE or identity.attributes is None:
        raise ConfigurationError(f"{config.tls.certificate} is not a node's certificate")
    return identity


async def _await_admission(config: NodeConfig, identity: Identity, clock: Clock) -> None:
    """Return when this node's map file has it: a node that is to join asks the others until they know it.

    Raises `ConfigurationError` when the map is of another cluster.
    """
    cluster_map, _ = read_map(config.map, config.tls.authority)
    if identity.cluster_id != cluster_map.cluster_id:
        raise ConfigurationError("this node's certificate and the cluster map are of different clusters")
    if not is_ahead(identity, cluster_map):
        return
    _log.info(
        "waiting for a map with this certificate (coffre cluster add-node, or renew)",
        extra={"node": identity.name},
    )
    authority = read_certificate(config.tls.authority)
    transport = GrpcTransport(cluster_map, config.tls)

    async def learn(found: VerifiedMap) -> None:
        await transport.update_map(found.map)
        write_map(config.map, found.signed)

    try:
        source = ClusterMaps(transport, RemoteCoordination(transport), authority, clock)
        await await_admission(identity, cluster_map, source, clock, learn)
    finally:
        await transport.close()


def _server(
    config: NodeConfig, servicer: Servicer, coordination: CoordinationServicer, clock: Clock
) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),  # two nodes on one port must not share it in silence
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),  # clients ping every 30 s in calls
            ("grpc.max_send_message_length", 4 * MESSAGE_BYTES_MAX),
        ],
        maximum_concurrent_rpcs=CALLS_MAX,
    )
    add_servicer(server, servicer)
    add_CoordinationServicer_to_server(coordination, server)  # type: ignore[arg-type]  # generated for both kinds
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection(
        (SERVICE, COORDINATION, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    try:
        server.add_secure_port(config.listen, server_credentials(config.tls, clock))
    except RuntimeError:
        raise ConfigurationError(
            f"cannot listen on {config.listen}: the address is in use or not of this host"
        ) from None
    return server, health_servicer


async def _reclaim_forever(store: ShardStore, clocks: PeerClocks) -> None:
    said: type[CoffreError] | None = None
    while True:
        freed_bytes = 0
        try:
            freed_bytes = await store.reclaim(expire=clocks.now_ms() is not None)
            said = None
        except CoffreError as error:
            if type(error) is not said:  # once: it is tried again and again
                said = type(error)
                level = logging.WARNING if isinstance(error, RetryableError) else logging.ERROR
                _log.log(level, "reclaim postponed", extra={"error": said.__name__})
        if not freed_bytes:
            await clocks.clock.sleep(RECLAIM_IDLE_SECONDS)
