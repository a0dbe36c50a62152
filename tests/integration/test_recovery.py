"""The recovery script, on its own: what it gives back from the directories of a cluster that is no more."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import json
import os
import random
import shutil
import subprocess
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import pytest
from coffre.client import KeyRing, connect
from coffre.dev.local_cluster import ClusterShape, LocalCluster
from coffre.node.disk.rows import Location, decode_row, encode_row, seal
from coffre.node.store import State

SCRIPT = Path(__file__).parents[2] / "docs" / "recovery" / "recover.py"
ALLOWED = ("zfec", "lmdb", "protobuf", "zstandard", "cryptography")
THEIRS = ("cffi", "pycparser")  # what cryptography and zstandard bring along
MIB = 1 << 20
RECORD = b'{"resourceType":"Observation","id":"%d","status":"final","code":{"coding":[{"system":"http://loinc.org"}]}}'
STRANGE = (
    "..",
    ".",
    "../../etc/passwd",
    "/absolute/path",
    "with\0nul",
    "line\nbreak",
    "~partial",
    "%2E%2E",
    "Case",
    "case",
    "\N{FACE WITH TEARS OF JOY}" * 50,
    "x" * 1024,
    "x" * 400,
    "x" * 401,
    "é" * 512,
)


@dataclass(frozen=True)
class Filled:
    """A stopped cluster: what was put, by tenant, bucket and key, and what was deleted."""

    cluster: LocalCluster
    values: dict[tuple[str, str, str], bytes]
    deleted: set[tuple[str, str, str]]

    def copies(self, directory: Path, numbers: tuple[int, ...]) -> list[Path]:
        """Node directories of the test's own."""
        found = [directory / f"node-{number}" for number in numbers]
        for number, path in zip(numbers, found, strict=True):
            shutil.copytree(self.cluster.data(number), path)
        return found


@dataclass(frozen=True)
class Run:
    """What a run of the script came to."""

    status: int
    stdout: str
    stderr: str
    entries: list[dict[str, Any]]
    output: Path


def objects() -> dict[str, bytes]:
    """Every way that an object can lie on a disk."""
    chance = random.Random(20)
    values = {key: chance.randbytes(chance.randrange(1, 2000)) for key in STRANGE}
    values |= {f"small/{number}": chance.randbytes(700) for number in range(10)}
    values |= {f"fhir/{number}": RECORD % number for number in range(3)}
    values["empty"] = b""
    values["text"] = b"patient " * 5000
    values["packed"] = chance.randbytes(100_000)
    values["segment"] = chance.randbytes(MIB)
    values["two"] = chance.randbytes(MIB + 1)
    values["large"] = chance.randbytes(3 * MIB) + bytes(2 * MIB) + b"the end"
    return values


async def fill(cluster: LocalCluster) -> Filled:
    values: dict[tuple[str, str, str], bytes] = {}
    async with await connect(cluster.client_config("clinic")) as client:
        for key, value in objects().items():
            metadata = {"ward": "Été", "n": str(len(value))}
            await client.put("records", key, value, content_type="application/dicom", metadata=metadata)
            values["clinic", "records", key] = value
        await client.put("other.bucket", "small/1", b"another bucket's")
        values["clinic", "other.bucket", "small/1"] = b"another bucket's"
        for key in ("small/2", "large"):
            values["clinic", "records", key] = b"second " + values["clinic", "records", key]
            await client.put("records", key, values["clinic", "records", key])
        for key in ("small/3", "packed"):
            await client.delete("records", key)
            del values["clinic", "records", key]
        await client.flush()
    async with await connect(cluster.client_config("lab")) as client:
        await client.put("records", "small/1", b"the lab's")
        values["lab", "records", "small/1"] = b"the lab's"
        await client.flush()
    return Filled(cluster, values, {("clinic", "records", "small/3"), ("clinic", "records", "packed")})


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    shape = ClusterShape(tenants=("clinic", "lab"), versions_kept=3)

    async def life() -> Filled:
        directory = tmp_path_factory.mktemp("recovery") / "cluster"
        async with LocalCluster.create(directory, shape) as cluster:
            return await fill(cluster)

    return asyncio.run(life())


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the five packages that the script may use, and nothing else."""
    directory = tmp_path_factory.mktemp("alone")
    venv.create(directory, symlinks=True, with_pip=False)
    (site,) = directory.glob("lib/python*/site-packages")
    for name in (*ALLOWED, *THEIRS):
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or ():
            source, target = Path(str(distribution.locate_file(file))), site / file
            if ".." not in file.parts and source.suffix != ".pyc":
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source)
    found = directory / "bin" / "python"
    probe = (
        "import importlib.util as u, sys; sys.exit(any(u.find_spec(n) for n in ('coffre', 'grpc', 'click')))"
    )
    assert subprocess.run([found, "-c", probe], check=False).returncode == 0
    return found


def recover(python: Path, filled: Filled, output: Path, nodes: list[Path], *extra: str) -> Run:
    """Run the script, outside of the repository."""
    home = filled.cluster.directory
    keys = () if "--keyring" in extra else ("--keyring", str(home / "keyring.json"))
    phrase = () if "--passphrase-file" in extra else ("--passphrase-file", str(home / "passphrase"))
    write = () if "--list" in extra else ("--output", str(output))
    command = [str(python), "-I", "-W", "error", str(SCRIPT), *keys, *phrase, *write, *extra]
    done = subprocess.run(
        [*command, "--", *map(str, nodes)], capture_output=True, text=True, check=False, cwd="/"
    )
    assert "Traceback" not in done.stderr, done.stderr
    index = output / "index.jsonl"
    entries = [json.loads(line) for line in index.read_text().splitlines()] if index.exists() else []
    return Run(done.returncode, done.stdout, done.stderr, entries, output)


def names(entries: list[dict[str, Any]], flag: str) -> set[tuple[str, str, str]]:
    return {(e["tenant"], e["bucket"], e["key"]) for e in entries if flag in e["flags"]}


def check_written(run: Run, filled: Filled) -> set[tuple[str, str, str]]:
    """Whatever was written is what was put, bit for bit, and nothing else is there. Returns the names."""
    found = set()
    files = set()
    for entry in run.entries:
        if entry["file"] is None:
            continue
        name = (entry["tenant"], entry["bucket"], entry["key"])
        path = run.output / entry["file"]
        assert path.resolve().is_relative_to((run.output / "objects" / name[0] / name[1]).resolve())
        data = path.read_bytes()
        assert data == filled.values[name], name
        assert (entry["size_bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        found.add(name)
        files.add(path)
    assert files == {path for path in (run.output / "objects").rglob("*") if path.is_file()}
    assert len(files) == len(found)
    return found


def digest(directory: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in directory.rglob("*")
        if path.is_file()
    }


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x40]))


def test_four_of_six_nodes_give_everything_back(filled: Filled, python: Path, tmp_path: Path) -> None:
    nodes = filled.copies(tmp_path, (1, 3, 4, 6))
    before = [digest(node) for node in nodes]
    run = recover(python, filled, tmp_path / "out", nodes)
    assert (run.status, run.stderr) == (0, "")
    assert check_written(run, filled) == set(filled.values)
    assert names(run.entries, "deleted") == filled.deleted
    assert [digest(node) for node in nodes] == before
    by_name = {(e["tenant"], e["bucket"], e["key"]): e for e in run.entries}
    entry = by_name["clinic", "records", "segment"]
    assert entry["content_type"] == "application/dicom"
    assert entry["metadata"] == {"ward": "Été", "n": str(MIB)}
    assert (tmp_path / "out").stat().st_mode & 0o077 == 0


def test_list_and_filters(filled: Filled, python: Path, tmp_path: Path) -> None:
    nodes = [filled.cluster.data(number) for number in (2, 4, 5, 6)]
    listed = recover(python, filled, tmp_path / "out", nodes, "--list", "--tenant", "lab")
    (entry,) = [json.loads(line) for line in listed.stdout.splitlines()]
    assert (entry["key"], entry["shards"], listed.status) == ("small/1", 4, 0)
    assert not (tmp_path / "out").exists()
    run = recover(python, filled, tmp_path / "out", nodes, "--bucket", "records", "--prefix", "x" * 401)
    assert check_written(run, filled) == {("clinic", "records", "x" * n) for n in (401, 1024)}


def test_damage_is_worked_around(filled: Filled, python: Path, tmp_path: Path) -> None:
    """All six nodes, two with a flipped byte in every 150 of volumes and large files."""
    nodes = filled.copies(tmp_path, (1, 2, 3, 4, 5, 6))
    for node in (nodes[0], nodes[3]):
        for path in [*node.glob("volumes/*"), *node.glob("large/*/*")]:
            for offset in range(50, path.stat().st_size, 150):
                flip(path, offset)
    (large,) = (path for path in nodes[1].glob("large/*/*") if path.stat().st_size < MIB)
    os.truncate(large, large.stat().st_size - 20)  # its table is gone, its cells are not
    run = recover(python, filled, tmp_path / "out", nodes)
    assert run.status == 0, run.stderr
    assert check_written(run, filled) == set(filled.values)
    assert names(run.entries, "deleted") == filled.deleted
    assert "worked around" in run.stderr


def test_damaged_rows_and_indexes(filled: Filled, python: Path, tmp_path: Path) -> None:
    """A row of a damaged index is not believed; an index that is no index is skipped."""
    nodes = filled.copies(tmp_path, (1, 2, 3, 4, 5))
    with lmdb.open(str(nodes[0] / "index"), max_dbs=16) as env:
        table = env.open_db(b"objects")
        with env.begin(write=True) as txn:
            for key, value in list(txn.cursor(db=table)):
                txn.put(bytes(key), bytes(value[:-1]) + bytes((value[-1] ^ 1,)), db=table)
    data = nodes[1] / "index" / "data.mdb"
    os.truncate(data, data.stat().st_size // 2)
    (tmp_path / "stranger").mkdir()
    run = recover(python, filled, tmp_path / "out", [*nodes, tmp_path / "stranger"])
    lost = names(run.entries, "lost")
    assert run.status == 1
    assert f"{nodes[1]}: skipped: its index cannot be read" in run.stderr
    assert f"{tmp_path / 'stranger'}: skipped: not a node's data directory" in run.stderr
    # Three nodes are left: too few for objects, enough for what was deleted.
    assert lost == set(filled.values)
    assert names(run.entries, "deleted") == filled.deleted
    again = recover(python, filled, tmp_path / "out2", [*nodes, filled.cluster.data(6)])
    assert again.status == 1  # a directory was skipped
    assert check_written(again, filled) == set(filled.values)


def test_too_few_nodes_lose_and_say_so(filled: Filled, python: Path, tmp_path: Path) -> None:
    nodes = [filled.cluster.data(number) for number in (1, 2, 3)]
    run = recover(python, filled, tmp_path / "out", nodes)
    assert run.status == 1
    assert names(run.entries, "lost") == set(filled.values)
    assert run.stderr.count("LOST") == len(filled.values)
    assert not list((tmp_path / "out").glob("objects/**/*~partial"))
    assert check_written(run, filled) == set()


def test_resume(filled: Filled, python: Path, tmp_path: Path) -> None:
    """A run that was cut off goes on; what is whole is not written again; another directory is refused."""
    nodes = [filled.cluster.data(number) for number in (2, 3, 5, 6)]
    first = recover(python, filled, tmp_path / "out", nodes)
    assert recover(python, filled, tmp_path / "out", nodes).status == 2
    index = tmp_path / "out" / "index.jsonl"
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[len(lines) // 2][:30])
    kept = [json.loads(line)["file"] for line in lines[: len(lines) // 2]]
    files = [tmp_path / "out" / file for file in kept if file]
    files[0].write_bytes(b"short")
    before = [path.stat().st_ino for path in files[1:]]
    second = recover(python, filled, tmp_path / "out", nodes, "--resume")
    assert (second.status, second.entries) == (0, first.entries)
    assert check_written(second, filled) == set(filled.values)
    assert [path.stat().st_ino for path in files[1:]] == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").touch()
    refused = recover(python, filled, tmp_path / "mine", nodes, "--resume")
    assert (refused.status, refused.stderr.count("\n")) == (2, 1)


def test_wrong_passphrase_and_wrong_keys(filled: Filled, python: Path, tmp_path: Path) -> None:
    nodes = [filled.cluster.data(number) for number in filled.cluster.numbers]
    wrong = tmp_path / "passphrase"
    wrong.write_text("not it\n")
    run = recover(python, filled, tmp_path / "out", nodes, "--passphrase-file", str(wrong))
    assert (run.status, run.stderr.count("\n")) == (2, 1)
    assert "the passphrase does not open the key ring" in run.stderr
    KeyRing.generate().save(tmp_path / "keyring.json", b"not it")
    foreign = ("--keyring", str(tmp_path / "keyring.json"), "--passphrase-file", str(wrong))
    run = recover(python, filled, tmp_path / "out", nodes, *foreign)
    assert run.status == 1
    assert "is not in the key ring" in run.stderr
    # Without the key, nobody can tell a tombstone from a forged one either.
    assert names(run.entries, "lost") == set(filled.values) | filled.deleted
    assert check_written(run, filled) == set()


def test_a_record_never_comes_back_under_another_name(filled: Filled, python: Path, tmp_path: Path) -> None:
    """On all nodes the rows of two patients are exchanged, with good checksums: neither is given out."""
    nodes = filled.copies(tmp_path, (1, 2, 3, 4, 5, 6))
    for node in nodes:
        with lmdb.open(str(node / "index"), max_dbs=16) as env:
            table = env.open_db(b"objects")
            with env.begin(write=True) as txn:
                rows = {bytes(key): bytes(value) for key, value in txn.cursor(db=table)}
                one, other = (
                    next(key for key in rows if key.endswith(name)) for name in (b"small/5", b"small/6")
                )
                txn.put(one, seal(one, rows[other][:-4]), db=table)
                txn.put(other, seal(other, rows[one][:-4]), db=table)
    run = recover(python, filled, tmp_path / "out", nodes)
    exchanged = {("clinic", "records", "small/5"), ("clinic", "records", "small/6")}
    assert run.status == 1
    assert names(run.entries, "lost") == exchanged
    assert check_written(run, filled) == set(filled.values) - exchanged


def test_unsettled_and_older_versions_are_flagged(filled: Filled, python: Path, tmp_path: Path) -> None:
    """The newest version of small/2 is lost, that of small/5 was never settled anywhere."""
    nodes = filled.copies(tmp_path, (1, 2, 3, 4, 5, 6))
    for number, node in enumerate(nodes):
        with lmdb.open(str(node / "index"), max_dbs=16) as env:
            table = env.open_db(b"objects")
            with env.begin(write=True) as txn:
                for key, value in list(txn.cursor(db=table)):
                    row = decode_row(bytes(key), bytes(value))
                    newest = row.entries[0]
                    assert isinstance(newest.record, Location)
                    if bytes(key).endswith(b"small/2") and number < 3:
                        volume = node / "volumes" / f"{newest.record.volume:08d}.vol"
                        flip(volume, newest.record.offset + newest.record.size_bytes - 1)
                    # What its writer's marks say would not tell one object from the other.
                    state = State.ACCEPTED if bytes(key).endswith(b"small/5") else State.SETTLED
                    entries = (newest._replace(state=state), *row.entries[1:])
                    txn.put(bytes(key), encode_row(bytes(key), row.partition, entries), db=table)
                txn.drop(env.open_db(b"writers", txn=txn), delete=False)
    lost, unsettled = ("clinic", "records", "small/2"), ("clinic", "records", "small/5")
    run = recover(python, filled, tmp_path / "out", nodes)
    assert run.status == 1
    assert names(run.entries, "lost") == {lost}
    assert names(run.entries, "unsettled") == {unsettled}
    assert check_written(run, filled) == set(filled.values) - {lost}
    assert "--older writes it" in run.stderr
    run = recover(python, filled, tmp_path / "older", nodes, "--older")
    assert run.status == 1
    (older,) = (entry for entry in run.entries if "older" in entry["flags"])
    assert (older["key"], older["file"].count("~older-")) == ("small/2", 1)
    assert b"second " + (run.output / older["file"]).read_bytes() == filled.values[lost]
