"""client.toml: where a client finds its cluster, its certificate and its keys, and `connect`."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path

from coffre.client._sources import StrPath, path_of
from coffre.client.async_client import AsyncClient
from coffre.client.keys import KeyProvider, KeyRing
from coffre.client.model import ClientOptions
from coffre.client.sync_client import Client
from coffre.cluster.clock import SystemClock
from coffre.cluster.coordination import RemoteCoordination
from coffre.cluster.errors import ConfigurationError, InvalidArgument, Unauthenticated
from coffre.cluster.identity import Role, TlsFiles, load_identity, read_certificate
from coffre.cluster.map import read_map
from coffre.cluster.membership import ClusterMaps, KeptMaps
from coffre.cluster.transport import GrpcTransport

__all__ = ["ClientConfig", "connect", "connect_sync", "find_config", "load_client_config"]

CONFIG_VARIABLE = "COFFRE_CONFIG"
PASSPHRASE_VARIABLE = "COFFRE_KEYRING_PASSPHRASE"
DEFAULT_PLACES = (Path(".coffre/client.toml"), Path("~/.config/coffre/client.toml"))
PASSPHRASE_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """Settings of one client; relative paths count from the file's own folder."""

    map: Path
    tls: TlsFiles
    keyring: Path
    passphrase_file: Path | None
    options: ClientOptions = field(default_factory=ClientOptions)


def find_config(given: StrPath | None) -> Path:
    """Return the configuration to use: the one given, $COFFRE_CONFIG, ./.coffre, or ~/.config/coffre."""
    if given is not None:
        return path_of(given)
    if named := os.environ.get(CONFIG_VARIABLE):
        return Path(named)
    for place in DEFAULT_PLACES:
        found = os.path.expanduser(place)  # noqa: PTH111  # as it is, where a user has no home
        if os.path.exists(found):  # noqa: PTH110  # no, where a user may not look
            return Path(found)
    raise ConfigurationError(
        "no cluster is configured: name a client.toml (--config FILE, connect(PATH), COFFRE_CONFIG), or start a "
        "cluster to develop against (`coffre dev up`)"
    )


def load_client_config(path: StrPath) -> ClientConfig:
    """Read and check `path`. Raises `ConfigurationError`."""
    path = path_of(path)
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from None
    required = ("map", "authority", "certificate", "key", "keyring")
    known = {*required, "passphrase_file"}
    options = _options(path, raw.pop("options", {}))
    for name, value in raw.items():
        if name not in known or not isinstance(value, str):
            raise ConfigurationError(
                f"{path}: {name} is not a setting, or not text; known are {', '.join(sorted(known))}, "
                "and the table [options]"
            )
    if missing := [name for name in required if name not in raw]:
        raise ConfigurationError(f"{path} lacks {', '.join(missing)}; see docs/operations.md")
    base = path.parent
    return ClientConfig(
        map=base / raw["map"],
        tls=TlsFiles(base / raw["authority"], base / raw["certificate"], base / raw["key"]),
        keyring=base / raw["keyring"],
        passphrase_file=base / raw["passphrase_file"] if "passphrase_file" in raw else None,
        options=options,
    )


def _options(path: Path, table: object) -> ClientOptions:
    """The table `[options]`: fields of `ClientOptions`; `compress_level = false` never compresses."""
    known = {each.name for each in fields(ClientOptions)}
    if not isinstance(table, dict) or not table.keys() <= known:
        raise ConfigurationError(f"{path}: [options] is a table, and has {', '.join(sorted(known))} at most")
    values = dict(table)
    if values.get("compress_level") is False:
        values["compress_level"] = None
    try:
        return ClientOptions(**values)
    except InvalidArgument as error:
        raise ConfigurationError(f"{path}: [options]: {error}") from None


def load_passphrase(config: ClientConfig) -> bytes:
    """The key ring's passphrase: from $COFFRE_KEYRING_PASSPHRASE, or the file that the configuration names."""
    if given := os.environ.get(PASSPHRASE_VARIABLE):
        return given.encode()
    if config.passphrase_file is None:
        raise ConfigurationError(
            f"the key ring needs a passphrase: set {PASSPHRASE_VARIABLE} or passphrase_file"
        )
    try:
        with config.passphrase_file.open("rb") as file:
            return file.read(PASSPHRASE_BYTES_MAX).rstrip(b"\r\n")
    except OSError as error:
        raise ConfigurationError(f"cannot read {config.passphrase_file}: {error.strerror}") from None


async def connect(
    config: ClientConfig | StrPath | None = None,
    *,
    keys: KeyProvider | None = None,
    options: ClientOptions | None = None,
) -> AsyncClient:
    """Return a client of the cluster that the configuration (`find_config`) describes. No node needs to answer yet.

    `keys`: instead of the key ring that the configuration names. `options`: instead of its table `[options]`.

    Raises `ConfigurationError` or `Unauthenticated` when a file of the configuration is not usable.
    """
    if not isinstance(config, ClientConfig):
        config = load_client_config(find_config(config))
    cluster_map, _ = read_map(config.map, config.tls.authority)
    clock = SystemClock()
    identity = load_identity(config.tls, clock)  # no node would answer who shows one that has expired
    if identity.role is not Role.TENANT:
        raise Unauthenticated(
            f"{config.tls.certificate} is not a tenant's certificate; only tenants store objects"
        )
    if identity.cluster_id != cluster_map.cluster_id:
        raise ConfigurationError("the certificate and the cluster map are of different clusters")
    keys = keys or KeyRing.load(config.keyring, load_passphrase(config))
    transport = GrpcTransport(cluster_map, config.tls, clock=clock)
    coordination = RemoteCoordination(transport)
    source = ClusterMaps(transport, coordination, read_certificate(config.tls.authority), clock)
    return AsyncClient(
        cluster_map,
        transport,
        keys,
        identity.name,
        options=options or config.options,
        clock=clock,
        coordination=coordination,
        maps=KeptMaps(source, config.map, cluster_map),
    )


def connect_sync(
    config: ClientConfig | StrPath | None = None,
    *,
    keys: KeyProvider | None = None,
    options: ClientOptions | None = None,
) -> Client:
    """The same for code without an event loop."""
    if config is not None and not isinstance(config, ClientConfig):
        config = path_of(config)
    return Client(lambda: connect(config, keys=keys, options=options))
