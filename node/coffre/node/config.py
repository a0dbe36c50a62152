"""node.toml: what an administrator tells one node."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from coffre.cluster.errors import ConfigurationError, InvalidArgument
from coffre.cluster.identity import TlsFiles
from coffre.node.following import WatchOptions
from coffre.node.listening import check_listen
from coffre.node.repair import RETENTION_SECONDS_MIN, UNFINISHED_SECONDS_MIN, RepairOptions
from coffre.node.store import StoreOptions

__all__ = ["CoordinationConfig", "EmbeddedConfig", "EtcdConfig", "NodeConfig", "load_node_config"]

_TOP = {
    "listen": str,
    "data": str,
    "map": str,
    "log_level": str,
    "require_mount": bool,
    "tls": dict,
    "store": dict,
    "repair": dict,
    "watch": dict,
    "coordination": dict,
}
_STORE = {
    field.name: float if field.name == "staging_expiry" else int
    for field in fields(StoreOptions)
    if field.name != "versions_kept"
}
_EMBEDDED = {"kind": str, "folder": str}
_ETCD = {"kind": str, "endpoints": list, "ca": str, "certificate": str, "key": str}
_REPAIR = {
    field.name: {"paused": bool, "bytes_per_second": int}.get(field.name, float)
    for field in fields(RepairOptions)
}
_WATCH = {field.name: {"flaps": int}.get(field.name, float) for field in fields(WatchOptions)}
_LEVELS = {"debug", "info", "warning", "error"}


@dataclass(frozen=True, slots=True)
class EmbeddedConfig:
    """Coordination in a folder of this node."""

    folder: Path


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """Coordination in etcd: its members (host:port), and the certificates with which this node is let in."""

    endpoints: tuple[str, ...]
    tls: TlsFiles


CoordinationConfig = EmbeddedConfig | EtcdConfig


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Settings of one node; relative paths count from the file's own folder."""

    listen: str  # host:port
    data: Path
    map: Path
    tls: TlsFiles
    store: StoreOptions
    repair: RepairOptions
    watch: WatchOptions
    log_level: str = "info"
    require_mount: bool = False  # `data` must be where a disk is mounted, or the node does not start
    coordination: CoordinationConfig | None = None  # which this node serves to others


def load_node_config(path: Path) -> NodeConfig:
    """Read and check `path`. Raises `ConfigurationError` that names the setting and what it should be."""
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from None
    _check(path, "", raw, _TOP)
    tls, store, repair, watch = (raw.get(section, {}) for section in ("tls", "store", "repair", "watch"))
    _check(path, "tls.", tls, {"authority": str, "certificate": str, "key": str})
    _check(path, "store.", store, _STORE)
    _check(path, "repair.", repair, _REPAIR)
    _check(path, "watch.", watch, _WATCH)
    options = RepairOptions(**repair)
    if options.retention_seconds < RETENTION_SECONDS_MIN:
        raise ConfigurationError(
            f"{path}: repair.retention_seconds is at least {RETENTION_SECONDS_MIN}: a deletion is remembered "
            "for longer than any message is under way"
        )
    if options.unfinished_seconds < UNFINISHED_SECONDS_MIN:
        raise ConfigurationError(
            f"{path}: repair.unfinished_seconds is at least {UNFINISHED_SECONDS_MIN}: until then a client may still be "
            "told that its write stands"
        )
    missing = [name for name in ("listen", "data", "map") if name not in raw]
    missing += [f"tls.{name}" for name in ("authority", "certificate", "key") if name not in tls]
    if missing:
        raise ConfigurationError(f"{path} lacks {', '.join(missing)}; see docs/operations.md")
    check_listen(raw["listen"])
    level = raw.get("log_level", "info")
    if level not in _LEVELS:
        raise ConfigurationError(f"{path}: log_level is one of {', '.join(sorted(_LEVELS))}, not {level!r}")
    base = path.parent
    return NodeConfig(
        listen=raw["listen"],
        data=base / raw["data"],
        map=base / raw["map"],
        tls=TlsFiles(base / tls["authority"], base / tls["certificate"], base / tls["key"]),
        store=StoreOptions(**store),
        repair=options,
        watch=_watch(path, watch),
        log_level=level,
        require_mount=raw.get("require_mount", False),
        coordination=_coordination(path, raw["coordination"]) if "coordination" in raw else None,
    )


def _watch(path: Path, raw: dict[str, float]) -> WatchOptions:
    options = WatchOptions(**raw)  # type: ignore[arg-type]  # checked above
    try:
        options.limits()
    except InvalidArgument as error:
        raise ConfigurationError(f"{path}: watch: {error}") from None
    if options.ask_seconds <= 0:
        raise ConfigurationError(f"{path}: watch.ask_seconds is above 0")
    return options


def _coordination(path: Path, raw: dict[str, object]) -> CoordinationConfig:
    kinds: dict[str, Mapping[str, type]] = {"embedded": _EMBEDDED, "etcd": _ETCD}
    kind = raw.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigurationError(
            f"{path}: coordination.kind is one of {', '.join(sorted(kinds))}, not {kind!r}"
        )
    known = kinds[kind]
    _check(path, "coordination.", raw, known)
    if missing := [f"coordination.{name}" for name in known if name not in raw]:
        raise ConfigurationError(f"{path} lacks {', '.join(missing)}; see docs/operations.md")
    if kind == "embedded":
        return EmbeddedConfig(path.parent / str(raw["folder"]))
    endpoints = raw["endpoints"]
    assert isinstance(endpoints, list)
    if not endpoints or not all(isinstance(each, str) and each for each in endpoints):
        raise ConfigurationError(f"{path}: coordination.endpoints is a list of host:port")
    authority, certificate, key = (path.parent / str(raw[name]) for name in ("ca", "certificate", "key"))
    return EtcdConfig(tuple(endpoints), TlsFiles(authority, certificate, key))


def _check(path: Path, prefix: str, table: dict[str, object], known: Mapping[str, type]) -> None:
    for name, value in table.items():
        if name not in known:
            raise ConfigurationError(
                f"{path}: unknown setting {prefix}{name}; known are {', '.join(sorted(known))}"
            )
        kind = known[name]
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise ConfigurationError(f"{path}: {prefix}{name} must be a {kind.__name__}")
        if isinstance(value, (int, float)) and value <= 0 and kind is not bool:
            raise ConfigurationError(f"{path}: {prefix}{name} must be greater than zero")
