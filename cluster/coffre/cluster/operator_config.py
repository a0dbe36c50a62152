"""operator.toml: where an operator's commands find the cluster's map, and the certificate that they sign with."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from coffre.cluster.errors import ConfigurationError
from coffre.cluster.tls import TlsFiles

__all__ = ["OperatorConfig", "find_operator_config", "load_operator_config"]

CONFIG_VARIABLE = "COFFRE_OPERATOR_CONFIG"
DEFAULT_PLACES = (Path(".coffre/operator.toml"), Path("~/.config/coffre/operator.toml"))
_SETTINGS = ("map", "authority", "certificate", "key")


@dataclass(frozen=True, slots=True)
class OperatorConfig:
    """Settings of one operator; relative paths count from the file's own folder."""

    map: Path
    tls: TlsFiles


def find_operator_config(given: Path | None) -> Path:
    """The configuration to use: the one given, $COFFRE_OPERATOR_CONFIG, ./.coffre, or ~/.config/coffre."""
    if given is not None:
        return given
    if named := os.environ.get(CONFIG_VARIABLE):
        return Path(named)
    for place in DEFAULT_PLACES:
        if place.expanduser().exists():
            return place.expanduser()
    raise ConfigurationError(
        f"no cluster is configured: pass --config FILE (an operator.toml), or set {CONFIG_VARIABLE}"
    )


def load_operator_config(path: Path) -> OperatorConfig:
    """Read and check `path`. Raises `ConfigurationError`."""
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
    return OperatorConfig(base / raw["map"], tls)
