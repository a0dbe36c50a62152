"""What nodes may not read or forge: manifests under a seal, segments and metadata under the data key.

Formats: docs/formats/manifest.md and docs/formats/segment.md.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from coffre.client.keys import KeyProvider, WrappedKey
from coffre.client.model import ObjectInfo
from coffre.client.sealing._compression import Shrinker, decompress
from coffre.client.sealing._memory import SegmentMemory
from coffre.cluster.errors import CoffreError, IntegrityError, KeyUnavailable, Unsupported
from coffre.cluster.manifest import MANIFEST_FORMAT
from coffre.cluster.names import ObjectName
from coffre.cluster.versions import Stamp
from coffre.proto import coffre_pb2 as pb
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.protobuf.message import DecodeError

__all__ = [
    "FRAME",
    "TAG_BYTES",
    "Draft",
    "Frame",
    "OpenManifest",
    "Sealer",
    "SegmentCipher",
    "segment_count",
    "unframe",
]

MAC_BYTES = 16
TAG_BYTES = 16
SEGMENT_BYTES_MAX = 16 << 20
_SEAL_LABEL = b"coffre manifest seal v1"
_METADATA_NONCE = b"\xff" * 12
FRAME = struct.Struct("<BI")  # compression, payload bytes
_STREAMED_BYTES_MIN = 64 << 10  # from here on, copies cost more than the longer way through the library


def segment_count(size_bytes: int, segment_bytes: int) -> int:
    """How many segments an object has; the empty object has one."""
    return max(1, -(-size_bytes // segment_bytes))


@dataclass(slots=True)
class Draft:
    """A version in the making: everything but its stamp. `manifest` is filled in except for stamp."""

    name: ObjectName
    data_key: bytes
    manifest: pb.Manifest
    above: bytes = (
        b""  # a stamp that stood in the way, and is further ahead than this machine's clock is moved
    )

    def set_sealing(self, sealing: pb.Sealing.ValueType) -> None:
        """Say how segments are sealed; before the first is."""
        self.manifest.sealing = sealing

    def seal(self, stamp: Stamp, placement: Sequence[int]) -> pb.SealedManifest:
        """Fix the stamp and seal. May be called again with another stamp."""
        self.manifest.stamp = stamp.to_bytes()
        raw = self.manifest.SerializeToString()
        return pb.SealedManifest(manifest=raw, mac=_mac(self.data_key, self.name, raw), placement=placement)


@dataclass(frozen=True, slots=True)
class OpenManifest:
    """A manifest whose seal was verified, with its data key.

    Or, with `closed`: why this client cannot open it. Then the data key is empty, no seal was verified, and what the
    manifest says in clear is what more than m nodes say of it alike (docs/consistency.md, "Without the key").
    """

    name: ObjectName
    manifest: pb.Manifest
    data_key: bytes
    stamp: Stamp
    closed: CoffreError | None = None

    @property
    def tombstone(self) -> bool:
        """Whether the version is a deletion."""
        return self.manifest.kind == pb.KIND_TOMBSTONE

    @property
    def identity(self) -> Stamp:
        """The version that this is to users: of one that was coded anew, the one whose content it has."""
        return Stamp.from_bytes(self.manifest.recodes) if self.manifest.recodes else self.stamp

    @property
    def segments(self) -> int:
        """How many segments the object has."""
        return segment_count(self.manifest.size_bytes, self.manifest.segment_bytes)

    def plain_bytes(self, segment: int) -> int:
        """The size of a segment's plaintext."""
        start = segment * self.manifest.segment_bytes
        return min(self.manifest.segment_bytes, self.manifest.size_bytes - start)

    def metadata(self) -> pb.Metadata:
        """Decrypt the user's metadata. Raises `IntegrityError`."""
        if not self.manifest.sealed_metadata:
            return pb.Metadata()
        try:
            raw = AESGCM(self.data_key).decrypt(
                _METADATA_NONCE, self.manifest.sealed_metadata, self.manifest.data_id
            )
        except InvalidTag:
            raise IntegrityError("the metadata does not verify") from None
        return pb.Metadata.FromString(raw)

    def info(self) -> ObjectInfo:
        """What a reader may know of the version. Raises `IntegrityError`."""
        metadata = pb.Metadata() if self.closed else self.metadata()
        return ObjectInfo(
            self.name.bucket,
            self.name.key,
            str(self.identity),
            self.manifest.size_bytes,
            self.identity.unixtime_ms,
            metadata.content_type,
            dict(metadata.user),
            self.tombstone,
            str(self.closed or ""),
        )


class Sealer:
    """Makes drafts and opens sealed manifests, with the keys of one provider."""

    def __init__(self, keys: KeyProvider, entropy: Callable[[int], bytes]) -> None:
        self._keys = keys
        self._entropy = entropy

    async def draft(
        self,
        name: ObjectName,
        kind: pb.Kind.ValueType,
        *,
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> Draft:
        """Start a version with a new data key and data id."""
        data_key, data_id = self._entropy(32), self._entropy(16)
        wrapped = await self._keys.wrap(data_key, _wrap_context(name, data_id))
        manifest = pb.Manifest(
            format=MANIFEST_FORMAT,
            kind=kind,
            data_id=data_id,
            key_id=wrapped.key_id,
            wrapped_key=wrapped.wrapped,
        )
        if content_type or metadata:
            plain = pb.Metadata(content_type=content_type, user=metadata or {}).SerializeToString(
                deterministic=True
            )
            manifest.sealed_metadata = AESGCM(data_key).encrypt(_METADATA_NONCE, plain, data_id)
        return Draft(name, data_key, manifest)

    async def renew(self, draft: Draft) -> None:
        """Begin a draft anew, with another data key and data id: what is cut or padded otherwise is never encrypted
        with the same key twice."""
        metadata = OpenManifest(draft.name, draft.manifest, draft.data_key, Stamp(0, 0)).metadata()
        kind, user = draft.manifest.kind, dict(metadata.user)
        fresh = await self.draft(draft.name, kind, content_type=metadata.content_type, metadata=user)
        draft.data_key, draft.manifest = fresh.data_key, fresh.manifest

    async def open(self, name: ObjectName, sealed: pb.SealedManifest) -> OpenManifest:
        """Verify that the manifest was written for `name` by a holder of the keys.

        Raises `IntegrityError`, `KeyUnavailable`, or `Unsupported` for a format of the future.
        """
        try:
            manifest = pb.Manifest.FromString(sealed.manifest)
        except DecodeError:
            raise IntegrityError("a node returned a manifest that is not one") from None
        if manifest.format != MANIFEST_FORMAT or manifest.sealing not in pb.Sealing.values():
            raise Unsupported(
                f"{name.bucket}/{name.key} has manifest format {manifest.format} and sealing {manifest.sealing}; "
                "this client does not know that: it is of an older release"
            )
        wrapped = WrappedKey(manifest.key_id, manifest.wrapped_key)
        try:
            data_key = await self._keys.unwrap(wrapped, _wrap_context(name, manifest.data_id))
        except KeyUnavailable as error:
            raise KeyUnavailable(
                f"{name.bucket}/{name.key} needs the key {manifest.key_id!r}: {error}"
            ) from None
        if not hmac.compare_digest(_mac(data_key, name, sealed.manifest), sealed.mac):
            raise IntegrityError("a node returned a manifest whose seal does not verify")
        return OpenManifest(name, manifest, data_key, Stamp.from_bytes(manifest.stamp))

    @staticmethod
    def left_closed(name: ObjectName, raw: bytes, why: CoffreError) -> OpenManifest:
        """A manifest that `open` refused with `why`, as more than m nodes have it. Raises `IntegrityError`."""
        manifest = pb.Manifest.FromString(raw)
        return OpenManifest(name, manifest, b"", Stamp.from_bytes(manifest.stamp), why)


def _wrap_context(name: ObjectName, data_id: bytes) -> bytes:
    return data_id + name.context()


def _mac(data_key: bytes, name: ObjectName, manifest: bytes) -> bytes:
    seal_key = hmac.digest(data_key, _SEAL_LABEL, "sha256")
    context = name.context()
    return hmac.digest(seal_key, struct.pack("<I", len(context)) + context + manifest, "sha256")[:MAC_BYTES]


@dataclass(frozen=True, slots=True)
class Frame:
    """What is encrypted of one segment: its header, the payload, and zeros up to a multiple of k (the tag counted)."""

    header: bytes
    payload: bytes | bytearray | memoryview
    padding: bytes

    @property
    def sealed_bytes(self) -> int:
        """The length of the ciphertext."""
        return len(self.header) + len(self.payload) + len(self.padding) + TAG_BYTES


def unframe(segment: int, frame: bytes | memoryview, plain_bytes: int) -> bytes | memoryview:
    """The `plain_bytes` bytes of plaintext in a frame that was decrypted. Raises `IntegrityError`."""
    if len(frame) < FRAME.size:
        raise IntegrityError(f"segment {segment} is shorter than its frame")
    compression, size_bytes = FRAME.unpack_from(frame)
    plain = decompress(compression, memoryview(frame)[FRAME.size : FRAME.size + size_bytes], plain_bytes)
    if len(plain) != plain_bytes:
        raise IntegrityError(f"segment {segment} has {len(plain)} bytes instead of {plain_bytes}")
    return plain


class SegmentCipher:
    """Turns plaintext segments into ciphertext that splits into k equal cells, and back.

    For objects of one segment (docs/formats/segment.md, sealing 0). One data key encrypts one write, so the
    segment's number is the nonce. Threads may share a cipher.
    """

    def __init__(self, data_key: bytes, data_id: bytes, k: int, *, compress_level: int | None = 3) -> None:
        self._data_key = data_key
        self._cipher = AESGCM(data_key)
        self._data_id = data_id
        self._k = k
        self._shrinker = Shrinker(compress_level)
        self._memory = SegmentMemory()

    def seal(self, segment: int, plain: bytes | bytearray | memoryview) -> bytearray:
        """Return the ciphertext of one segment; its length is a multiple of k."""
        frame = self.frame(plain)
        sealed = bytearray(frame.sealed_bytes)
        self.seal_into(segment, frame, memoryview(sealed))
        return sealed

    def frame(self, plain: bytes | bytearray | memoryview) -> Frame:
        """Compress a segment when that helps, and say what has to be encrypted."""
        compression, payload = self._shrinker.shrink(plain)
        size_bytes = len(payload)
        padding = -(FRAME.size + size_bytes + TAG_BYTES) % self._k
        return Frame(FRAME.pack(compression, size_bytes), payload, bytes(padding))

    def seal_into(self, segment: int, frame: Frame, sealed: memoryview) -> None:
        """Encrypt a frame into memory of its `sealed_bytes`. No nonce may serve twice: once for a segment."""
        nonce = segment.to_bytes(12, "big")
        parts = (frame.header, frame.payload, frame.padding)
        if len(sealed) < _STREAMED_BYTES_MIN:
            self._cipher.encrypt_into(nonce, b"".join(parts), self._data_id, sealed)
            return
        encryptor = Cipher(algorithms.AES(self._data_key), modes.GCM(nonce)).encryptor()
        encryptor.authenticate_additional_data(self._data_id)
        position = 0
        for part in parts:
            position += encryptor.update_into(part, sealed[position:])
        encryptor.finalize()
        sealed[position:] = encryptor.tag

    def open(
        self, segment: int, cells: Sequence[bytes | bytearray | memoryview], plain_bytes: int
    ) -> bytes | memoryview:
        """Return the `plain_bytes` bytes of one segment from the pieces of its ciphertext, in order.

        Raises `IntegrityError` when anything is not as written.
        """
        try:
            frame = self._decrypt(segment.to_bytes(12, "big"), cells)
        except InvalidTag:
            raise IntegrityError(f"segment {segment} does not verify") from None
        return unframe(segment, frame, plain_bytes)

    def _decrypt(self, nonce: bytes, cells: Sequence[bytes | bytearray | memoryview]) -> bytes | memoryview:
        """Raises `InvalidTag`; then nothing of the plaintext has left this function."""
        size_bytes = sum(map(len, cells))
        if size_bytes < _STREAMED_BYTES_MIN or len(cells[-1]) < TAG_BYTES:
            return self._cipher.decrypt(nonce, b"".join(cells), self._data_id)
        decryptor = Cipher(algorithms.AES(self._data_key), modes.GCM(nonce)).decryptor()
        decryptor.authenticate_additional_data(self._data_id)
        frame = rest = self._memory.take(size_bytes - TAG_BYTES)
        last = memoryview(cells[-1])
        for cell in (*cells[:-1], last[:-TAG_BYTES]):
            rest = rest[decryptor.update_into(cell, rest) :]
        decryptor.finalize_with_tag(bytes(last[-TAG_BYTES:]))
        return frame.toreadonly()
