"""Synthetic large objects: chest-like CR images and an archive-like file, the same bytes on any machine.

Only integer arithmetic and the raw stream of a bit generator are used: NumPy promises neither its
distributions nor the last bit of its floating-point functions from one release to the next (NEP 19).
"""

from __future__ import annotations

from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian

__all__ = ["write_archive", "write_radiograph"]

_FULL_SCALE = 4095  # 12 bits stored in 16, as CR detectors do
_CHUNK_BYTES = 1 << 20
_WORD_BYTES = 8


def write_radiograph(path: Path, *, number: int, rows: int, columns: int, seed: int) -> None:
    """Write a valid DICOM CR image (PS3.3, A.2) of `rows` x `columns` 16-bit pixels. `number` starts at 1."""
    study, series, instance = (_uid(f"{seed}/{number}/{level}") for level in ("study", "series", "instance"))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID, meta.ImplementationVersionName = _uid("implementation"), "COFFRE"
    image = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    image.SOPClassUID = meta.MediaStorageSOPClassUID
    image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID = study, series
    image.PatientName, image.PatientID = f"Synthetic^Test{number}", f"SYNTHETIC-{number}"
    image.PatientBirthDate, image.PatientSex = "19700101", "O"
    image.StudyDate, image.StudyTime, image.StudyID = "20250101", "120000", str(number)
    image.AccessionNumber, image.ReferringPhysicianName = "", ""
    image.Modality, image.Manufacturer, image.SeriesNumber = "CR", "", "1"
    image.BodyPartExamined, image.ViewPosition = "CHEST", "PA"
    image.InstanceNumber, image.PatientOrientation = "1", ["L", "F"]
    image.Rows, image.Columns = rows, columns
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.PixelData = _radiograph(rows, columns, seed + number).astype("<u2").tobytes()
    image.save_as(path, enforce_file_format=True)


def _uid(name: str) -> UID:
    # DICOM PS3.5, B.2: a UID made from a UUID, so that no registered root is needed.
    return UID(f"2.25.{uuid5(NAMESPACE_URL, f'urn:coffre:bench:{name}').int}")


def _radiograph(rows: int, columns: int, seed: int) -> NDArray[np.int64]:
    """Smooth gradients with detector noise, shape (rows, columns), values 0..4095."""
    row = np.arange(rows, dtype=np.int64)[:, None] * 1024 // rows
    column = np.arange(columns, dtype=np.int64)[None, :] * 1024 // columns
    body = 3000 - (column - 512) ** 2 // 160 - (row - 600) ** 2 // 400
    picture = body.astype(np.int64)
    shift = seed * 37 % 64  # each image a slightly different anatomy
    for centre in (300 + shift, 724 - shift):  # two lungs: dark ellipses with a soft edge
        distance = (column - centre) ** 2 // 32 + (row - 480) ** 2 // 96
        picture -= np.clip(1500 - distance, 0, 1100)
    ribs = np.abs((row * 3 + (column - 512) ** 2 // 256 + shift) % 192 - 96)
    picture += ribs
    # Four uniform bytes summed are nearly normal (Irwin-Hall); divided, their deviation is 9 grey levels.
    noise = _raw_bytes(np.random.PCG64(seed), rows * columns * 4).reshape(rows, columns, 4)
    picture += (noise.sum(axis=2, dtype=np.int64) - 510) // 16
    return np.clip(picture, 0, _FULL_SCALE)


def write_archive(path: Path, *, size_bytes: int, seed: int) -> None:
    """Write `size_bytes` of chunks that alternate at random between text-like (5:1 or so) and incompressible.

    Memory stays at a few chunks of 1 MiB, whatever the size.
    """
    source = np.random.PCG64(seed)
    words = _raw_bytes(source, 256 * _WORD_BYTES).reshape(256, _WORD_BYTES) % 26 + ord("a")
    words[:, -1] = ord(" ")
    left = size_bytes
    with path.open("wb") as sink:
        while left > 0:
            size = min(left, _CHUNK_BYTES)
            if int(_raw_bytes(source, 1)[0]) < 128:
                chunk = _raw_bytes(source, size).tobytes()
            else:
                chunk = words[_raw_bytes(source, -(-size // _WORD_BYTES))].tobytes()[:size]
            sink.write(chunk)
            left -= size


def _raw_bytes(source: np.random.PCG64, size: int) -> NDArray[np.uint8]:
    raw = np.asarray(source.random_raw(-(-size // 8)), dtype="<u8")
    return raw.view(np.uint8)[:size]
