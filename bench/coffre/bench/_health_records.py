"""FHIR and DICOM records from packages: two generators run offline, and the files that pydicom carries."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coffre.cluster.errors import ConfigurationError

__all__ = ["FhirPlan", "collect_dicom", "generate_fhir"]

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
