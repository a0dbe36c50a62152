"""The demo data set: complete, offline, the same bytes every time, never at the cost of other files."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from importlib import metadata
from itertools import islice
from pathlib import Path

import pydicom
import pytest
import zstandard
from coffre.bench.fhir_records import compression, fhir_records
from coffre.cluster.errors import ConfigurationError, InvalidArgument
from coffre.dev import dataset
from coffre.dev._synthetic import write_archive, write_radiograph
from coffre.dev.dataset import DatasetSummary, Record, Scale, generate, records

ARCHIVE_SHA256 = "153edb2838878aaed87a3b757d163dd612a0ef711583ef2298bdbff794133c70"
RADIOGRAPH_SHA256 = "c3f3b80ff872fb3da16a208e6080b0a4b2438f2d65159ecc3b047643080f86e4"


def quiet(step: str, done: float) -> None:
    """A progress callback for those who do not look."""


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, float]]:
    return []


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, float]]) -> DatasetSummary:
    directory = tmp_path_factory.mktemp("dataset")
    return generate(directory, scale="small", progress=lambda step, done: steps.append((step, done)))


def test_every_kind_of_object_is_there_and_matches_its_index(small: DatasetSummary) -> None:
    found = list(records(small.directory))
    kinds = Counter(record.key.split("/")[0] for record in found)
    assert kinds["fhir"] > 100
    assert kinds["dicom"] > 100
    assert (kinds["cr"], kinds["archive"]) == (2, 1)
    assert sum(record.key.startswith("fhir/bundle/") for record in found) == 5
    assert len({record.key for record in found}) == len(found) == small.objects
    assert sum(record.size_bytes for record in found) == small.size_bytes
    for record in found:
        content = record.path.read_bytes()
        assert (len(content), sha256(content).hexdigest()) == (record.size_bytes, record.sha256)


def test_fhir_objects_are_whole_resources_under_their_own_names(small: DatasetSummary) -> None:
    singles = 0
    for record in records(small.directory):
        parts = record.key.split("/")
        if parts[:2] == ["fhir", "bundle"]:
            assert json.loads(record.path.read_bytes())["resourceType"] == "Bundle"
        elif parts[0] == "fhir" and parts[1] != "bulk":
            resource = json.loads(record.path.read_bytes())
            assert record.key == f"fhir/{resource['resourceType']}/{resource['id']}.json"
            singles += 1
    bulk = small.directory / "objects" / "fhir" / "bulk"
    assert singles == sum(len(path.read_bytes().splitlines()) for path in bulk.iterdir()) > 100


def test_the_generated_records_of_the_bench_are_no_more_alike_than_these(small: DatasetSummary) -> None:
    """Bulk figures would flatter otherwise. Compared among as many records, in random order."""
    theirs = [
        record.path.read_bytes()
        for record in records(small.directory)
        if record.key.startswith("fhir/") and record.key.split("/")[1] not in ("bulk", "bundle")
    ]
    random.Random(1).shuffle(theirs)
    ours = [record.data for record in islice(fhir_records(1), len(theirs))]
    assert compression(ours).alone < 1.1 * compression(theirs).alone
    assert compression(ours).bulk < 1.1 * compression(theirs).bulk


def test_progress_is_told_from_start_to_end_of_each_step(
    small: DatasetSummary, steps: list[tuple[str, float]]
) -> None:
    by_step: dict[str, list[float]] = {}
    for step, done in steps:
        by_step.setdefault(step, []).append(done)
    assert list(by_step) == ["FHIR records", "DICOM files", "CR images", "archive", "checksums"]
    assert all(done == sorted(done) and done[0] == 0.0 and done[-1] == 1.0 for done in by_step.values())


@pytest.mark.long
def test_a_complete_set_is_used_again_and_a_damaged_one_is_built_anew_with_the_same_bytes(
    small: DatasetSummary, tmp_path: Path
) -> None:
    again = generate(small.directory, scale="small", progress=quiet)
    assert again.reused
    assert again.digest == small.digest
    victim = next(records(small.directory)).path
    with victim.open("ab") as stream:
        stream.write(b"x")
    rebuilt = generate(small.directory, scale="small", progress=quiet)
    assert not rebuilt.reused
    assert rebuilt.digest == small.digest


def test_an_interrupted_build_is_not_taken_for_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "_build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "set", scale="small", progress=quiet)
    with pytest.raises(ConfigurationError, match="no complete data set"):
        list(records(tmp_path / "set"))
    with pytest.raises(KeyboardInterrupt):  # builds again instead of using what is there
        generate(tmp_path / "set", scale="small", progress=quiet)


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "thesis.txt").write_text("the only copy")
    with pytest.raises(ConfigurationError, match="not empty"):
        generate(tmp_path, scale="small", progress=quiet)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
        "objects",
        "objects/thesis.txt",
    ]


def test_two_builds_in_one_directory_do_not_mix(tmp_path: Path) -> None:
    with (
        dataset._only_user(tmp_path),
        pytest.raises(ConfigurationError, match="another process"),
    ):
        generate(tmp_path, scale="small", progress=quiet)


def test_an_unknown_scale_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="full, small"):
        generate(tmp_path, scale="huge", progress=quiet)


def test_a_missing_package_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "clinosim":
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(ConfigurationError, match=r"clinosim is not installed: pip install 'coffre\[demo\]'"):
        generate(tmp_path / "set", scale="small", progress=quiet)
    assert not (tmp_path / "set").exists()


def test_a_failing_generator_is_reported_with_what_it_said_and_stops_the_other(tmp_path: Path) -> None:
    arguments = {
        "carebundle": ["generate", "--profile", "no-such-profile"],
        "clinosim": ["simulate", "-p", "500"],
    }
    with pytest.raises(ConfigurationError, match=r"carebundle failed with exit code 2: .*no-such-profile"):
        dataset._run_together(arguments, tmp_path)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [child for child in children if b"clinosim" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.parametrize(
    "call", ["socket.create_connection(('127.0.0.1', 9))", "socket.getaddrinfo('localhost', 80)"]
)
def test_a_generator_cannot_reach_the_network(call: str) -> None:
    launcher = dataset._OFFLINE_LAUNCHER.split("name = ")[0]
    script = f"{launcher}\nimport socket\n{call}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("OSError: this generator runs offline")


@pytest.mark.parametrize("name", ["..", ".", "a/b", "", "x" * 65])
def test_a_resource_id_never_becomes_a_path(name: str, tmp_path: Path) -> None:
    source = tmp_path / "Patient.ndjson"
    source.write_text(json.dumps({"resourceType": "Patient", "id": name}) + "\n")
    with pytest.raises(ConfigurationError, match="resource with type 'Patient'"):
        dataset._split_ndjson(source, tmp_path)


def test_a_radiograph_is_a_valid_cr_image_that_compresses_like_one(tmp_path: Path) -> None:
    path = tmp_path / "cr.dcm"
    write_radiograph(path, number=1, rows=500, columns=400, seed=1)
    image = pydicom.dcmread(path)
    assert (image.Modality, image.BitsAllocated) == ("CR", 16)
    pixels = image.pixel_array
    assert pixels.shape == (500, 400)
    assert 0 <= pixels.min() < 1000 < 2500 < pixels.max() <= 4095
    ratio = path.stat().st_size / len(zstandard.compress(path.read_bytes(), 3))
    assert 1.2 < ratio < 3.0
    write_radiograph(tmp_path / "again.dcm", number=1, rows=500, columns=400, seed=1)
    assert (tmp_path / "again.dcm").read_bytes() == path.read_bytes()


def test_synthetic_bytes_are_frozen(tmp_path: Path) -> None:
    """Golden digests: figures of different years are measured on the same bytes."""
    write_archive(tmp_path / "archive", size_bytes=(3 << 20) + 5, seed=7)
    write_radiograph(tmp_path / "cr.dcm", number=1, rows=64, columns=48, seed=7)
    assert (tmp_path / "archive").stat().st_size == (3 << 20) + 5
    assert sha256((tmp_path / "archive").read_bytes()).hexdigest() == ARCHIVE_SHA256
    assert sha256((tmp_path / "cr.dcm").read_bytes()).hexdigest() == RADIOGRAPH_SHA256


def test_the_archive_mixes_compressible_and_incompressible_parts(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive", size_bytes=16 << 20, seed=7)
    content = (tmp_path / "archive").read_bytes()
    sizes = [len(zstandard.compress(content[at : at + (1 << 20)], 3)) for at in range(0, 16 << 20, 1 << 20)]
    plain = sum(size > (1 << 20) * 0.99 for size in sizes)
    dense = sum(size < (1 << 20) * 0.4 for size in sizes)
    assert plain + dense == 16
    assert min(plain, dense) >= 4


def test_records_and_summaries_are_frozen(small: DatasetSummary) -> None:
    record = next(records(small.directory))
    assert isinstance(record, Record)
    assert small.scale is Scale.SMALL
    with pytest.raises(AttributeError):
        record.key = "other"  # type: ignore[misc]
