"""operator.toml: with which certificate, and on which map, an operator's commands talk to the nodes."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

import click
from coffre.cluster.clock import Clock
from coffre.cluster.errors import CoffreError, ConfigurationError, Unauthenticated
from coffre.cluster.health import OwnFiles
from coffre.cluster.identity import (
    Role,
    TlsFiles,
    check_issuer,
    end_ms,
    identity_of_certificate,
    load_identity,
    load_tls,
    read_certificate,
)
from coffre.cluster.map import ClusterMap, read_map
from coffre.cluster.membership import learn_map
from coffre.cluster.transport import Transport

__all__ = [
    "OperatorConfig",
    "find_operator_config",
    "learned",
    "load_operator_config",
    "operator_option",
    "own_files",
]

CONFIG_VARIABLE = "COFFRE_OPERATOR_CONFIG"
DEFAULT_PLACES = (Path(".coffre/operator.toml"), Path("~/.config/coffre/operator.toml"))
_SETTINGS = ("map", "authority", "certificate", "key")

operator_option = click.option(
    "--operator",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="operator.toml; else $COFFRE_OPERATOR_CONFIG, ./.coffre, ~/.config/coffre.",
)


@dataclass(frozen=True, slots=True)
class OperatorConfig:
    """The map, verified, and where it and the files of an operator are."""

    cluster_map: ClusterMap
    tls: TlsFiles
    map_path: Path


def find_operator_config(given: Path | None) -> Path:
    """The file to use: the one given, $COFFRE_OPERATOR_CONFIG, ./.coffre, or ~/.config/coffre."""
    if given is not None:
        return given
    if named := os.environ.get(CONFIG_VARIABLE):
        return Path(named)
    for place in DEFAULT_PLACES:
        found = os.path.expanduser(place)  # noqa: PTH111  # as it is, where a user has no home
        if os.path.exists(found):  # noqa: PTH110  # no, where a user may not look
            return Path(found)
    raise ConfigurationError(
        f"no operator is configured: pass --operator FILE or set {CONFIG_VARIABLE}; see docs/operations.md"
    )


def load_operator_config(path: Path, clock: Clock | None = None) -> OperatorConfig:
    """Read and check `path`; relative paths count from its folder. With a clock, expired certificates are refused: no
    node would answer. Raises `ConfigurationError` or `Unauthenticated`."""
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from None
    for name, value in raw.items():
        if name not in _SETTINGS or not isinstance(value, str):
            raise ConfigurationError(
                f"{path}: {name} is not a setting, or not text; known are {', '.join(_SETTINGS)}"
            )
    if missing := [name for name in _SETTINGS if name not in raw]:
        raise ConfigurationError(f"{path} lacks {', '.join(missing)}; see docs/operations.md")
    base = path.parent
    tls = TlsFiles(base / raw["authority"], base / raw["certificate"], base / raw["key"])
    map_path = base / raw["map"]
    cluster_map, _ = read_map(map_path, tls.authority)
    identity = load_identity(tls, clock)
    if identity.role is not Role.OPERATOR:
        raise Unauthenticated(f"{tls.certificate} is not an operator's certificate")
    if identity.cluster_id != cluster_map.cluster_id:
        raise ConfigurationError("the certificate and the cluster map are of different clusters")
    return OperatorConfig(cluster_map, tls, map_path)


async def learned(config: OperatorConfig, transport: Transport) -> OperatorConfig:
    """The same with the newest map that a node has, which goes into the operator's file. Raises as `learn_map`."""
    authority = read_certificate(config.tls.authority)
    return replace(
        config, cluster_map=await learn_map(transport, config.cluster_map, config.map_path, authority)
    )


def own_files(tls: TlsFiles) -> OwnFiles:
    """When the certificates end that lie where the operator's own does, tenants' among them. Raises as `load_tls`."""
    own = load_tls(tls)
    authority = read_certificate(tls.authority)
    tenants: dict[str, int] = {}
    for path in sorted({*tls.certificate.parent.glob("*.crt"), *tls.authority.parent.glob("*.crt")}):
        try:
            certificate = read_certificate(path)
            check_issuer(certificate, authority)
            identity = identity_of_certificate(certificate)
        except CoffreError:
            continue  # something else that ends with .crt
        if identity.role is Role.TENANT:
            tenants[identity.name] = max(end_ms(certificate), tenants.get(identity.name, 0))
    return OwnFiles(own.identity.name, own.expires_unixtime_ms, own.authority_expires_unixtime_ms, tenants)
