"""The demo data set: synthetic health records, built offline from packages, the same bytes every time.

On disk: `objects/<key>` is each object; `dataset.json`, the marker, names them with sizes and SHA-256 and is written
last. A directory whose objects are all there is used again as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from coffre.cluster.errors import ConfigurationError, InvalidArgument
from coffre.dev.files import write_whole

__all__ = [
    "DatasetSummary",
    "FhirPlan",
    "Progress",
    "Record",
    "Scale",
    "collect_dicom",
    "generate",
    "generate_fhir",
    "records",
]

# FHIR R4, section 2.24.0.1 (datatype id). '.' and '..' match it too, and must not become file names.
_FHIR_ID = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9.-]{1,64}")
_FHIR_TYPE = re.compile(r"[A-Z][A-Za-z]{1,63}")

# The child refuses every connection and name lookup: "offline" does not rest on the generator's manners.
_OFFLINE_LAUNCHER = """
import sys
from importlib.metadata import distribution
def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise OSError("this generator runs offline")
sys.addaudithook(refuse)
name = sys.argv[0] = sys.argv.pop(1)
entries = distribution(name).entry_points.select(group="console_scripts", name=name)
sys.exit(next(iter(entries)).load()())
"""
_TIME_LIMIT_S = 600.0
_EXCERPT_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class FhirPlan:
    """How much to generate: patients of carebundle; population and last day (YYYY-MM-DD) of clinosim."""

    patients: int
    population: int
    last_day: str


def generate_fhir(plan: FhirPlan, work: Path, objects: Path, progress: Callable[[float], None]) -> None:
    """Fill `objects`/fhir: bundles, bulk NDJSON files, and each of their resources on its own.

    Both generators run at the same time in `work`. Raises `ConfigurationError` when one fails.
    """
    bundles, bulk = work / "carebundle", work / "clinosim"
    cohort = (
        f"generate --profile mixed --count {plan.patients} --sex mixed --age-range 18-90 --seed 42".split()
    )
    hospital = (
        f"simulate -p {plan.population} -s 7 --country US --start 2025-01-01 --end {plan.last_day}".split()
    )
    _run_together(
        {
            "carebundle": [*cohort, "--out", str(bundles)],
            "clinosim": [*hospital, "--format", "fhir-r4", "-o", str(bulk)],
        },
        work,
    )
    progress(0.7)
    _move_all(bundles, "*.json", objects / "fhir" / "bundle")
    _move_all(bulk / "fhir_r4", "*.ndjson", objects / "fhir" / "bulk")
    for source in sorted((objects / "fhir" / "bulk").iterdir()):
        _split_ndjson(source, objects / "fhir")
    progress(1.0)


def collect_dicom(objects: Path) -> None:
    """Copy into `objects`/dicom every DICOM file inside the installed pydicom package.

    Walks the package's folder and never asks pydicom.data, which downloads what it does not have.
    """
    spec = importlib.util.find_spec("pydicom")
    if spec is None or spec.origin is None:
        raise ConfigurationError("pydicom is not installed: pip install 'coffre[demo]'")
    root = Path(spec.origin).parent / "data"
    for source in sorted(path for path in root.rglob("*") if path.is_file() and _is_dicom(path)):
        target = objects / "dicom" / source.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _is_dicom(path: Path) -> bool:
    # DICOM PS3.10, section 7.1: a preamble of 128 bytes, then "DICM". Files without it go by their suffix.
    if path.suffix == ".dcm":
        return True
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _run_together(arguments: dict[str, list[str]], work: Path) -> None:
    """Run generators by name. The first that fails ends the others. Raises `ConfigurationError`."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    end = time.monotonic() + _TIME_LIMIT_S
    try:
        for name, words in arguments.items():
            running[name] = _launch(name, words, work)
        while any(process.poll() is None for process in running.values()):
            if time.monotonic() > end:
                raise ConfigurationError(f"the record generators did not finish within {_TIME_LIMIT_S:.0f} s")
            if any(process.returncode for process in running.values()):
                break
            time.sleep(0.02)
        for name, process in running.items():
            if process.returncode:
                raise ConfigurationError(_complaint(name, process.returncode, work))
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def _launch(name: str, words: list[str], work: Path) -> subprocess.Popen[bytes]:
    # A fixed hash seed keeps sets in one order; UTF-8 mode keeps a C locale from breaking what is printed.
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
    with (work / f"{name}.log").open("wb") as sink:
        return subprocess.Popen(
            [sys.executable, "-c", _OFFLINE_LAUNCHER, name, *words],
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )


def _complaint(name: str, code: int, work: Path) -> str:
    lines = (work / f"{name}.log").read_text(errors="replace").strip().splitlines()
    said = lines[-1][:_EXCERPT_CHARACTERS] if lines else "it said nothing"
    return f"{name} failed with exit code {code}: {said}"


def _move_all(source: Path, pattern: str, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    found = sorted(source.glob(pattern))
    if not found:
        raise ConfigurationError(f"the generator left no {pattern} files; is another version installed?")
    for path in found:
        path.rename(target / path.name)


def _split_ndjson(source: Path, target: Path) -> None:
    """Write each line of `source` to `target`/<type>/<id>.json, as it stands."""
    with source.open("rb") as stream:
        for line in stream:
            resource = json.loads(line)
            kind, number = str(resource.get("resourceType")), str(resource.get("id"))
            if not _FHIR_TYPE.fullmatch(kind) or not _FHIR_ID.fullmatch(number):
                raise ConfigurationError(
                    f"{source.name} holds a resource with type {kind!r} and id {number!r}"
                )
            path = target / kind / f"{number}.json"
            path.parent.mkdir(exist_ok=True)
            try:
                with path.open("xb") as sink:
                    sink.write(line.rstrip(b"\n"))
            except FileExistsError:
                raise ConfigurationError(f"{source.name} holds {kind}/{number} twice") from None


Progress = Callable[[str, float], None]
"""Called with the step's name and how much of it is done, 0.0 to 1.0."""

_MARKER, _OBJECTS, _WORK = "dataset.json", "objects", "work"
_FORMAT = 2
_PACKAGES = ("carebundle", "clinosim", "numpy", "pydicom")


class Scale(StrEnum):
    """How large a data set: `FULL` for the demo and published figures, `SMALL` for tests."""

    FULL = "full"
    SMALL = "small"


@dataclass(frozen=True, slots=True)
class Record:
    """One object: its key in the store, its file, its size and the SHA-256 (hex) of its bytes."""

    key: str
    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """What `generate` left. `digest` is SHA-256 (hex) over all entries: equal digests, equal keys and bytes."""

    directory: Path
    scale: Scale
    objects: int
    size_bytes: int
    digest: str
    reused: bool


@dataclass(frozen=True, slots=True)
class _Plan:
    """The sizes of one scale."""

    fhir: FhirPlan
    radiographs: int
    rows: int
    columns: int
    archive_bytes: int
    seed: int = 20250101


_PLANS = {
    Scale.FULL: _Plan(FhirPlan(500, 100, "2025-12-31"), 4, 2500, 2000, 256 << 20),
    Scale.SMALL: _Plan(FhirPlan(5, 5, "2025-03-31"), 2, 250, 200, 2 << 20),
}


def generate(directory: Path, *, scale: str, progress: Progress) -> DatasetSummary:
    """Build the data set in `directory`, or use again what an earlier run completed there.

    `directory` is absent, empty, or an earlier data set; anything else is refused and left alone. Raises
    `InvalidArgument` for an unknown scale and `ConfigurationError` for a missing package, a directory in use,
    or a generator that failed.
    """
    try:
        wanted = Scale(scale)
    except ValueError:
        raise InvalidArgument(f"scale is one of {', '.join(Scale)}; not {scale!r}") from None
    recipe = _recipe(wanted)
    directory.mkdir(parents=True, exist_ok=True)
    with _only_user(directory):
        before = _read_marker(directory)
        reused = before.get("recipe") == recipe and _is_whole(directory)
        if not reused:
            if any(directory.iterdir()) and not before:
                raise ConfigurationError(
                    f"{directory} is not empty and holds no data set; choose another directory"
                )
            _write_marker(directory, recipe)  # not complete from now on
            for name in (_OBJECTS, _WORK):
                shutil.rmtree(directory / name, ignore_errors=True)
            _build(directory, _PLANS[wanted], progress)
            entries = _entries(directory / _OBJECTS, progress)
            # On the disk before the marker that vouches for it, and so that no later disk measurement pays for it.
            # One sync of everything beats 13,000 small ones.
            os.sync()
            _write_marker(directory, recipe, entries)
        found = list(records(directory))
    size_bytes = sum(record.size_bytes for record in found)
    digest = sha256(
        "".join(f"{one.key} {one.size_bytes} {one.sha256}\n" for one in found).encode()
    ).hexdigest()
    return DatasetSummary(directory, wanted, len(found), size_bytes, digest, reused)


def records(directory: Path) -> Iterator[Record]:
    """Yield every object in key order; raises `ConfigurationError` unless the data set is complete."""
    entries = _read_marker(directory).get("objects")
    if entries is None:
        raise ConfigurationError(f"{directory} holds no complete data set")
    for key, size_bytes, digest in entries:
        yield Record(key, directory / _OBJECTS / key, size_bytes, digest)


def _recipe(scale: Scale) -> dict[str, Any]:
    """All that the bytes depend on: a marker with another recipe means building anew."""
    versions: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise ConfigurationError(f"{package} is not installed: pip install 'coffre[demo]'") from None
    return {"format": _FORMAT, "scale": scale.value, "plan": asdict(_PLANS[scale]), "packages": versions}


@contextlib.contextmanager
def _only_user(directory: Path) -> Iterator[None]:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigurationError(f"another process is building the data set in {directory}") from None
    finally:
        os.close(handle)


def _read_marker(directory: Path) -> dict[str, Any]:
    """What `_write_marker` wrote; empty if it is not there."""
    try:
        found = json.loads((directory / _MARKER).read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_marker(
    directory: Path, recipe: dict[str, Any], objects: list[tuple[str, int, str]] | None = None
) -> None:
    write_whole(directory / _MARKER, json.dumps({"recipe": recipe, "objects": objects}))


def _is_whole(directory: Path) -> bool:
    """Sizes, not digests: a stat of each file costs a tenth of a second, reading them all costs seconds."""
    try:
        return all(
            one.path.is_file() and one.path.stat().st_size == one.size_bytes for one in records(directory)
        )
    except ConfigurationError:
        return False


def _build(directory: Path, plan: _Plan, progress: Progress) -> None:
    # Here, and not above, so that a missing package has already been reported in one line.
    from coffre.dev._synthetic import write_archive, write_radiograph

    objects, work = directory / _OBJECTS, directory / _WORK
    for path in (objects, objects / "cr", objects / "archive", work):
        path.mkdir()
    progress("FHIR records", 0.0)
    generate_fhir(plan.fhir, work, objects, lambda done: progress("FHIR records", done))
    shutil.rmtree(work)
    progress("DICOM files", 0.0)
    collect_dicom(objects)
    progress("DICOM files", 1.0)
    for number in range(1, plan.radiographs + 1):
        progress("CR images", (number - 1) / plan.radiographs)
        path = objects / "cr" / f"chest-{number}.dcm"
        write_radiograph(path, number=number, rows=plan.rows, columns=plan.columns, seed=plan.seed)
    progress("CR images", 1.0)
    progress("archive", 0.0)
    write_archive(objects / "archive" / "year-2025.bin", size_bytes=plan.archive_bytes, seed=plan.seed)
    progress("archive", 1.0)


def _entries(root: Path, progress: Progress) -> list[tuple[str, int, str]]:
    """Key, size and SHA-256 of every object, in the order of their keys."""
    keys = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    found = []
    for number, key in enumerate(keys):
        if number % 512 == 0:
            progress("checksums", number / len(keys))
        with (root / key).open("rb") as stream:
            found.append((key, os.fstat(stream.fileno()).st_size, file_digest(stream, "sha256").hexdigest()))
    progress("checksums", 1.0)
    return found
