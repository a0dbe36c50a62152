"""Keys: who wraps the data keys. The seam, a key ring in a file, and keys in memory.

Every version has its own random data key. It is wrapped with AES-256-SIV (RFC 5297) by a key of the provider, bound to
the object's name, so a wrapped key that a node moved to another object does not open. File format:
docs/formats/keyring.md.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from coffre.client._sources import StrPath, path_of
from coffre.cluster.errors import ConfigurationError, IntegrityError, InvalidArgument, KeyUnavailable
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

__all__ = ["KeyProvider", "KeyRing", "WrappedKey"]

KEY_BYTES = 64  # AES-256-SIV takes two keys of 32 bytes
_FORMAT = 1
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 1 << 15, 8, 1
_SCRYPT_N_MAX = 1 << 20  # what a file may ask of this machine: 1 GiB
_FILE_BYTES_MAX = 1 << 20
_WRAP_LABEL = b"coffre data key v1"

Entropy = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key that only the key `key_id` opens."""

    key_id: str
    wrapped: bytes


class KeyProvider(Protocol):
    """Wraps and unwraps data keys. `context` binds a wrapped key to its object; both sides give the same bytes."""

    async def wrap(self, data_key: bytes, context: bytes) -> WrappedKey:
        """Wrap 32 bytes with the current key."""

    async def unwrap(self, key: WrappedKey, context: bytes) -> bytes:
        """Return the data key. Raises `KeyUnavailable` when the key is not at hand, `IntegrityError` when the
        wrapped bytes are not what this key wrapped for this context."""


class KeyRing:
    """Named keys, one of them current; kept in a file that a passphrase protects (scrypt, AES-256-GCM)."""

    def __init__(self, keys: Mapping[str, bytes], current: str) -> None:
        if current not in keys or any(len(key) != KEY_BYTES for key in keys.values()):
            raise ConfigurationError("a key ring needs its current key, and keys of 64 bytes")
        self._keys = dict(keys)
        self._ciphers = {key_id: AESSIV(key) for key_id, key in keys.items()}
        self._current = current

    def __repr__(self) -> str:
        return f"KeyRing({sorted(self._keys)}, current={self._current!r})"

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Ids of all keys in the ring, in order."""
        return tuple(sorted(self._keys))

    @property
    def current(self) -> str:
        return self._current

    async def wrap(self, data_key: bytes, context: bytes) -> WrappedKey:
        return WrappedKey(
            self._current, self._ciphers[self._current].encrypt(data_key, [_WRAP_LABEL, context])
        )

    async def unwrap(self, key: WrappedKey, context: bytes) -> bytes:
        cipher = self._ciphers.get(key.key_id)
        if cipher is None:
            raise KeyUnavailable(f"{key.key_id!r} is not in this client's key ring")
        try:
            return cipher.decrypt(key.wrapped, [_WRAP_LABEL, context])
        except (InvalidTag, ValueError):
            raise IntegrityError(f"the wrapped data key does not open with {key.key_id!r}") from None

    # ---------------------------------------------------------------- making and keeping

    @classmethod
    def generate(cls, entropy: Entropy = os.urandom) -> KeyRing:
        """A ring with one new key."""
        key_id = "k" + entropy(6).hex()
        return cls({key_id: entropy(KEY_BYTES)}, key_id)

    def rotated(self, entropy: Entropy = os.urandom) -> KeyRing:
        """A ring with a new current key; the old keys stay, to open what they wrapped.

        Who reads with a copy of this ring on another host needs the `extended` one first (docs/operations.md, "Keys are
        rotated").
        """
        return self.extended(entropy).switched()

    def extended(self, entropy: Entropy = os.urandom) -> KeyRing:
        """A ring with a new key, which nothing is wrapped with yet: to be known to every host before it is current."""
        key_id = "k" + entropy(6).hex()
        return KeyRing({**self._keys, key_id: entropy(KEY_BYTES)}, self._current)

    def switched(self) -> KeyRing:
        """A ring whose current key is the one that was made last. Raises `InvalidArgument` when it is that already."""
        last = next(reversed(self._keys))
        if last == self._current:
            raise InvalidArgument(f"{last} is the newest key of this ring, and current: add a key first")
        return KeyRing(self._keys, last)

    def save(self, path: StrPath, passphrase: bytes, *, entropy: Entropy = os.urandom) -> None:
        """Write the ring to a new file, mode 0600, that is on the disk when this returns. Raises `ConfigurationError`
        when it cannot, and then there is none, or when `path` exists."""
        salt, nonce = entropy(16), entropy(12)
        secret = json.dumps(
            {"current": self._current, "keys": {i: _text(key) for i, key in self._keys.items()}}
        ).encode()
        header = {
            "format": _FORMAT,
            "kdf": "scrypt",
            "n": _SCRYPT_N,
            "r": _SCRYPT_R,
            "p": _SCRYPT_P,
            "salt": _text(salt),
        }
        sealed = AESGCM(_derive(passphrase, salt, _SCRYPT_N, _SCRYPT_R, _SCRYPT_P)).encrypt(
            nonce, secret, _aad(header)
        )
        body = json.dumps({**header, "nonce": _text(nonce), "sealed": _text(sealed)}, indent=1).encode()
        try:
            _write_new(path_of(path), body)
        except OSError as error:
            raise ConfigurationError(f"cannot write the key ring {path}: {error.strerror}") from None

    @classmethod
    def load(cls, path: StrPath, passphrase: bytes) -> KeyRing:
        """Open a ring that `save` wrote. Raises `ConfigurationError` for another file or passphrase."""
        try:
            with path_of(path).open("rb") as file:
                raw = file.read(_FILE_BYTES_MAX + 1)
        except OSError as error:
            raise ConfigurationError(f"cannot read the key ring {path}: {error.strerror}") from None
        try:
            header = json.loads(raw)
            nonce, sealed = (
                base64.b64decode(header.pop(name), validate=True) for name in ("nonce", "sealed")
            )
            salt = base64.b64decode(header["salt"], validate=True)
            n, r, p = (int(header[name]) for name in ("n", "r", "p"))
            sound = header["format"] == _FORMAT and header["kdf"] == "scrypt"
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            sound, n, r, p = False, 0, 0, 0
        if not sound or not (
            2 <= n <= _SCRYPT_N_MAX and n & (n - 1) == 0 and r == _SCRYPT_R and p == _SCRYPT_P
        ):
            raise ConfigurationError(f"{path} is not a key ring that this version knows")
        try:
            secret = AESGCM(_derive(passphrase, salt, n, r, p)).decrypt(nonce, sealed, _aad(header))
        except (InvalidTag, ValueError):
            raise ConfigurationError(f"the passphrase does not open the key ring {path}") from None
        content = json.loads(secret)
        return cls({i: base64.b64decode(key) for i, key in content["keys"].items()}, content["current"])


def _write_new(path: Path, body: bytes) -> None:
    """A file that nobody had, whole, and its name synced as its bytes are: records are soon sealed with what is in it.
    Raises `OSError`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(descriptor)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _aad(header: Mapping[str, object]) -> bytes:
    return json.dumps(header, sort_keys=True).encode()


def _derive(passphrase: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
    return Scrypt(salt=salt, length=32, n=n, r=r, p=p).derive(passphrase)
