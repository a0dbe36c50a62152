"""Files that are there whole or not at all, also after a power cut."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from coffre.cluster.errors import AlreadyExists, ConfigurationError

__all__ = ["create_file", "read_file", "replace_file"]


def read_file(path: Path, size_max: int = 1 << 20) -> bytes:
    """The bytes of `path`. Raises `ConfigurationError` when that cannot be, or `size_max` is exceeded."""
    try:
        with path.open("rb") as file:
            raw = file.read(size_max + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    if len(raw) > size_max:
        raise ConfigurationError(f"{path} is larger than {size_max} bytes: it is not what it should be")
    return raw


def create_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file that is not there yet; `AlreadyExists` if it is. Folders are made with mode 0700."""
    temporary = _write_aside(path, data, mode)
    try:
        os.link(temporary, path)  # unlike rename, fails when the name is taken
        _sync_directory(path.parent)
    except FileExistsError:
        raise AlreadyExists(f"{path} exists; it is not overwritten") from None
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file, in place of the one that is there if any, whose mode stays. A link is followed."""
    path = Path(os.path.realpath(path))
    with suppress(OSError):  # what is wrong is said when it is written
        mode = stat.S_IMODE(path.stat().st_mode)
    temporary = _write_aside(path, data, mode)
    try:
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from None


def _write_aside(path: Path, data: bytes, mode: int) -> Path:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp opens with O_EXCL and mode 0600: nobody else can have put the file there, or read it.
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
    except OSError as error:
        raise ConfigurationError(f"cannot write into {path.parent}: {error.strerror}") from None
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from None
    return temporary


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
