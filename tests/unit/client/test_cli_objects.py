"""`coffre put`, `get` and `rm` on folders and prefixes, on a whole cluster in this process."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import stat
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from coffre.cli import _session
from coffre.cli._tree import tree
from coffre.client import AsyncClient, KeyRing
from coffre.cluster.errors import IntegrityError, ResourceExhausted, RetryableError, Unavailable
from coffre.dev.in_process import InProcessCluster, in_process_cluster

Run = Callable[..., Result]


class Cluster:
    """A cluster that every command of a test meets anew."""

    def __init__(self, inner: InProcessCluster) -> None:
        self.inner = inner

    def store(self, *keys: str, content: bytes = b"x") -> None:
        async def put() -> None:
            async with self.inner.client() as client:
                for key in keys:
                    await client.put("b", key, content or b"")

        asyncio.run(put())

    def keys(self, bucket: str = "b") -> list[str]:
        async def names() -> list[str]:
            async with self.inner.client() as client:
                return [entry.key async for entry in client.list(bucket) if not isinstance(entry, str)]

        return asyncio.run(names())


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cluster:
    found = Cluster(in_process_cluster(2, 1))

    async def connected(config: Path) -> AsyncClient:
        return found.inner.client()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COFFRE_CONFIG", "in this process")
    monkeypatch.setattr(_session, "connect", connected)
    return found


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(tree, [str(argument) for argument in arguments], input=stdin)


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root may read everything, and so finds nothing that it cannot."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# ------------------------------------------------------------------ rm

KEYS = ("old", "old/a", "old/deep/b", "older/c", "old.txt", "old-legal-hold/d")


@pytest.mark.parametrize("target", ["b/old", "b/old/"])
def test_rm_deletes_only_what_lies_below_the_folder(cluster: Cluster, target: str) -> None:
    cluster.store(*KEYS)
    done = run("rm", "-r", target, "--yes")
    assert done.exit_code == 0, done.output
    assert "b/old/: 2 objects, 2 bytes" in done.stderr
    assert done.stdout.splitlines() == ["deleted b/old/a", "deleted b/old/deep/b"]
    assert cluster.keys() == sorted({*KEYS} - {"old/a", "old/deep/b"})


def test_rm_of_a_bare_prefix_is_said(cluster: Cluster) -> None:
    cluster.store(*KEYS)
    done = run("rm", "--prefix", "b/old", "-y", "-q")
    assert done.exit_code == 0, done.output
    assert "b/old: 6 objects" in done.stderr
    assert cluster.keys() == []
    assert run("rm", "--prefix", "b", "-y").exit_code == 2  # a whole bucket is -r's


def test_rm_with_nobody_to_ask_deletes_nothing(cluster: Cluster) -> None:
    cluster.store(*KEYS)
    refused = run("rm", "-r", "b/old", stdin="y\n")
    assert refused.exit_code == 2
    assert "--yes" in refused.stderr
    assert cluster.keys() == sorted(KEYS)


def test_rm_dry_run(cluster: Cluster) -> None:
    cluster.store(*KEYS)
    dry = run("rm", "-r", "b/old", "b/older", "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert dry.stdout.splitlines() == [
        "would delete b/old/a",
        "would delete b/old/deep/b",
        "would delete b/older/c",
    ]
    assert "b/older/: 1 object, 1 byte" in dry.stderr
    assert run("rm", "-n", "b/old.txt").stdout == "would delete b/old.txt\n"
    assert cluster.keys() == sorted(KEYS)


def test_rm_leaves_what_is_stored_after_it_has_asked(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.store(*KEYS)

    def agreed(found: object) -> bool:
        other = threading.Thread(target=cluster.store, args=("old/a", "old/new"))
        other.start()
        other.join()
        return True

    monkeypatch.setattr("coffre.cli._rm._agreed", agreed)
    done = run("rm", "-r", "b/old")
    assert done.exit_code == 1
    assert done.stdout == "deleted b/old/deep/b\n"
    assert "left out b/old/a: it was stored after" in done.stderr
    assert {"old/a", "old/new"} < set(cluster.keys())


def test_rm_of_nothing(cluster: Cluster) -> None:
    cluster.store("old")
    assert run("rm", "-r", "b/old", "--yes").exit_code == 3  # an object, and no folder
    assert run("rm", "-r", "b/old", "--force").exit_code == 0
    assert run("rm", "b/none").exit_code == 3
    assert cluster.keys() == ["old"]


# ------------------------------------------------------------------ put


def test_put_of_a_folder_names_what_it_leaves_out(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    (folder / "sub").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "sub" / "one").write_bytes(b"1")
    (folder / "two").write_bytes(b"22")
    (folder / "link").symlink_to("two")
    (folder / "to-folder").symlink_to("sub")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
    (folder / os.fsdecode(b"latin-\xe9")).write_bytes(b"")
    (folder / os.fsdecode(b"folder-\xe9")).mkdir()
    (folder / ("long" * 60)).mkdir()
    deep = folder / ("long" * 60)
    for _ in range(4):  # a key has 1,024 bytes at most
        deep = deep / ("long" * 60)
        deep.mkdir()
    (deep / "far").write_bytes(b"")
    done = run("put", folder, "b/pre")
    assert done.exit_code == 1, done.output
    said = done.stderr.splitlines()
    for name, reason in (
        ("to-folder", "a link to a folder"),
        ("dangling", "leads nowhere"),
        ("loop", "leads nowhere"),
        ("pipe", "no regular file"),
        ("socket", "no regular file"),
        (r"latin-\xe9", "not UTF-8"),
        (r"folder-\xe9", "not UTF-8"),
        ("far", "1024 bytes"),
    ):
        assert [line for line in said if name in line and reason in line], (name, said)
    assert said[-1] == "coffre: 8 left out, 3 stored"
    assert len(said) == 9
    assert cluster.keys() == ["pre/link", "pre/sub/one", "pre/two"]


def test_put_of_a_folder_that_may_not_be_read(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    (folder / "closed").mkdir(parents=True)
    (folder / "closed" / "in").write_bytes(b"")
    (folder / "unsearched").mkdir()
    (folder / "unsearched" / "in").write_bytes(b"")
    (folder / "secret").write_bytes(b"")
    (folder / "open").write_bytes(b"")
    for name, mode in (("closed", 0), ("unsearched", 0o644), ("secret", 0)):
        (folder / name).chmod(mode)
    here = os.open(folder, os.O_RDONLY)
    try:
        with without_privileges():  # which may not even look at the folder's own folder
            done = run("put", f"/proc/self/fd/{here}", "b/pre")
    finally:
        os.close(here)
    assert done.exit_code == 1, done.output
    for name in ("closed", "unsearched/in", "secret"):
        assert [line for line in done.stderr.splitlines() if f"/{name}: " in line and "denied" in line]
    assert done.stderr.splitlines()[-1] == "coffre: 3 left out, 1 stored"
    assert cluster.keys() == ["pre/open"]


def test_put_of_a_folder_that_changes_meanwhile(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files go after they were found: they are named, and the others are stored."""
    folder = tmp_path / "f"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / name).write_bytes(b"")

    async def connected(config: Path) -> AsyncClient:
        (folder / "b").unlink()
        return cluster.inner.client()

    monkeypatch.setattr(_session, "connect", connected)
    done = run("put", folder, "b/pre")
    assert done.exit_code == 1
    assert "f/b" in done.stderr
    assert "1 left out, 2 stored" in done.stderr
    assert cluster.keys() == ["pre/a", "pre/c"]


def test_put_of_a_folder_goes_on_where_objects_exist(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a").write_bytes(b"")
    (folder / "b").write_bytes(b"")
    cluster.store("pre/a")
    done = run("put", folder, "b/pre", "--if-absent")
    assert done.exit_code == 1
    assert "pre/a exists" in done.stderr
    assert cluster.keys() == ["pre/a", "pre/b"]
    assert run("put", folder, "b/pre", "--if-version", "0" * 32).exit_code == 2


def test_put_ends_when_the_cluster_does_not_answer(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    for i in range(100):
        (folder / f"{i:03}").write_bytes(b"")
    tried = []

    async def fails(self: AsyncClient, *arguments: object, **options: object) -> None:
        tried.append(arguments)
        raise Unavailable("too few nodes")

    monkeypatch.setattr(AsyncClient, "put_file", fails)
    done = run("put", folder, "b/pre")
    assert done.exit_code == 5
    assert "100 left out, 0 stored" in done.stderr
    assert len(tried) == 64


def test_put_of_a_pipe(cluster: Cluster, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    keeps_it_open = os.open(tmp_path / "pipe", os.O_RDWR)
    os.write(keeps_it_open, b"streamed")

    async def connected(config: Path) -> AsyncClient:
        client = cluster.inner.client()
        asyncio.get_running_loop().call_later(0.01, os.close, keeps_it_open)
        return client

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_session, "connect", connected)
        done = run("put", tmp_path / "pipe", "b/")
    assert done.exit_code == 0, done.output
    assert "b/pipe  8 bytes" in done.stdout


# ------------------------------------------------------------------ get


def test_a_folder_comes_back_equal(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    (folder / "sub" / "deep").mkdir(parents=True)
    files = {
        "a": b"1",
        "sub/a": b"",
        "sub/deep/b": os.urandom(3 << 20),
        "n" * 255: b"the longest name",
        "line\nbreak": b"2",
        ".hidden": b"3",
        "é": b"4",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    assert run("put", folder, "b/pre", "-q").exit_code == 0
    cluster.store("pre-other/x", "pre")
    done = run("get", "-r", "b/pre", tmp_path / "new" / "back")
    assert done.exit_code == 0, done.output
    back = tmp_path / "new" / "back"
    assert {p.relative_to(back).as_posix(): p.read_bytes() for p in back.rglob("*") if p.is_file()} == files
    assert len(done.stdout.splitlines()) == len(files)
    again = run("get", "-q", "-r", "b/pre/", back)
    assert (again.exit_code, again.output) == (0, "")


def test_get_never_writes_outside_of_the_folder(cluster: Cluster, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"kept")
    back = tmp_path / "one" / "two" / "back"
    back.mkdir(parents=True)
    (back / "link").symlink_to(outside)
    (back / "file-link").symlink_to(outside / "kept")
    (back / "dangling").symlink_to(outside / "new")
    (back / "plain").write_bytes(b"")
    os.mkfifo(back / "pipe")
    refused = (
        *("pre/../up", "pre/a/../../up", "pre/..", "pre/.", "pre/./x", "pre//absolute", "pre//"),
        *("pre/nul\0byte", "pre/" + "n" * 256, "pre/both", "pre/ends/"),
        *("pre/link/x", "pre/file-link", "pre/dangling", "pre/plain/x", "pre/pipe"),
    )
    cluster.store(*refused, "pre/both/below", "pre/fine")
    before = {path for path in tmp_path.rglob("*") if back not in path.parents}
    done = run("get", "-r", "b/pre", back)
    assert done.exit_code == 1, done.output
    said = done.stderr.splitlines()
    assert said[-1] == f"coffre: {len(refused)} left out, 2 fetched"
    assert len(said) == len(refused) + 1
    assert (back / "fine").read_bytes() == b"x"
    assert (back / "both" / "below").read_bytes() == b"x"
    assert "coffre: left out b/pre/both: other objects lie below this name, so it is a folder" in said
    assert {path for path in tmp_path.rglob("*") if back not in path.parents} == before
    assert [path.name for path in outside.iterdir()] == ["kept"]
    assert (outside / "kept").read_bytes() == b"kept"
    assert stat.S_ISFIFO((back / "pipe").stat().st_mode)
    assert not list(back.rglob("*.part"))


def test_get_of_marks_of_folders(cluster: Cluster, tmp_path: Path) -> None:
    """Other programs store an empty object whose key ends in / for each folder."""
    cluster.store("pre/", "pre/empty/", "pre/full/", content=b"")
    cluster.store("pre/full/x")
    done = run("get", "-r", "b/pre", tmp_path / "back")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "back").rglob("*")) == ["empty", "full", "x"]


def test_get_of_a_folder_goes_on_after_a_damaged_object(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.store("pre/a", "pre/b", "pre/c")
    whole = AsyncClient.get_stream

    async def damaged(self: AsyncClient, bucket: str, key: str) -> AsyncGenerator[bytes | memoryview]:
        if key == "pre/b":
            raise IntegrityError("more shards are damaged than can be rebuilt")
        async with aclosing(whole(self, bucket, key)) as pieces:
            async for piece in pieces:
                yield piece

    monkeypatch.setattr(AsyncClient, "get_stream", damaged)
    done = run("get", "-r", "b/pre", tmp_path / "back")
    assert done.exit_code == 6, done.output
    assert "left out b/pre/b: more shards are damaged" in done.stderr
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["a", "c"]


def test_a_folder_with_an_object_of_another_key(cluster: Cluster, tmp_path: Path) -> None:
    """What this key ring cannot open is named; to be deleted it need not be understood."""
    cluster.store("pre/a")
    cluster.inner = dataclasses.replace(cluster.inner, keys=KeyRing.generate())
    cluster.store("pre/b")
    done = run("get", "-r", "b/pre", tmp_path / "back")
    assert done.exit_code == 1, done.output
    assert "left out b/pre/a: " in done.stderr
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["b"]
    assert run("rm", "-ry", "b/pre").exit_code == 0
    assert cluster.keys() == []


def test_get_of_a_folder_that_is_not_there(cluster: Cluster, tmp_path: Path) -> None:
    cluster.store("pre", "prefix/x")
    assert run("get", "-r", "b/pre", tmp_path / "back").exit_code == 3
    assert not (tmp_path / "back").exists()
    assert run("get", "-r", "b/pre").exit_code == 2
    assert run("get", "-r", "b/pre", "-").exit_code == 2
    assert run("get", "-r", "b/pre", tmp_path, "--range", "0-1").exit_code == 2


@pytest.mark.parametrize("key", ["a/..", "a/.", "a/", "..", "a\0b"])
def test_get_takes_no_file_name_from_such_a_key(cluster: Cluster, tmp_path: Path, key: str) -> None:
    cluster.store(key)
    before = set(tmp_path.parent.rglob("*"))
    for target in ((), (tmp_path,)):
        done = run("get", f"b/{key}", *target)
        assert done.exit_code == 2, done.output
        assert "no file name" in done.stderr
    assert set(tmp_path.parent.rglob("*")) == before


def test_get_ranges_keep_the_mode(cluster: Cluster, tmp_path: Path) -> None:
    cluster.store("k", content=b"0123456789")
    target = tmp_path / "t"
    target.write_bytes(b"old")
    target.chmod(0o640)
    with suppress(FileNotFoundError):
        (tmp_path / "l").unlink()
    (tmp_path / "l").symlink_to("t")
    assert run("get", "b/k", tmp_path / "l", "--range", "2-4").exit_code == 0
    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (b"234", 0o640)
    assert (tmp_path / "l").is_symlink()


# ------------------------------------------------------------------ told to end


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_get_of_a_folder_that_is_ended_leaves_no_part(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    """The signal comes while some files are whole, and others on their way."""
    cluster.store("pre/whole")
    cluster.store(*(f"pre/{i}" for i in range(8)), content=os.urandom(2 << 20))
    back = tmp_path / "back"
    seen = []
    whole = AsyncClient.get_stream

    async def interrupted(self: AsyncClient, bucket: str, key: str) -> AsyncGenerator[bytes | memoryview]:
        async with aclosing(whole(self, bucket, key)) as pieces:
            async for piece in pieces:
                yield piece
                if key != "pre/whole":
                    seen.append(len(list(back.glob("*.part"))))
                    os.kill(os.getpid(), signum)
                    await asyncio.wait_for(asyncio.Event().wait(), 30)

    monkeypatch.setattr(AsyncClient, "get_stream", interrupted)
    before = signal.signal(signum, lambda *_: None)  # a command that does not listen does not end the tests
    try:
        done = run("get", "-r", "b/pre", back)
    finally:
        signal.signal(signum, before)
    assert done.exit_code == 128 + signum
    assert max(seen) > 0
    assert not list(back.glob("*.part"))
    assert {path.name for path in back.iterdir()} <= {"whole"}


def test_nohup_is_respected(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.store("k")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    whole = AsyncClient.head

    async def interrupted(self: AsyncClient, *names: str, version: str | None = None) -> object:
        os.kill(os.getpid(), signal.SIGHUP)
        return await whole(self, *names, version=version)

    monkeypatch.setattr(AsyncClient, "head", interrupted)
    try:
        assert run("stat", "b/k").exit_code == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_version_that_a_list_shows_can_be_asked_for(cluster: Cluster) -> None:
    cluster.store("k", "folder/k")
    prefix, listed = run("ls", "-l", "b").output.splitlines()
    version = listed.split()[3]
    assert run("stat", "--version", version, "b/k").exit_code == 0
    assert prefix.index("folder/") == listed.index(" k") + 1
    for no_version in (version[:16], "zz", ""):
        refused = run("stat", "--version", no_version, "b/k")
        assert refused.exit_code == 2
        assert f"'{no_version}' is not a version: 32 hexadecimal digits" in refused.stderr


def test_buckets_are_said_to_be_made_and_forgotten(cluster: Cluster) -> None:
    for verb, said in (("create", "created scans\n"), ("delete", "deleted scans\n")):
        done = run("bucket", verb, "scans")
        assert (done.exit_code, done.output) == (0, said)


@pytest.mark.parametrize("kind", [Unavailable, ResourceExhausted])
def test_buckets_in_use_are_listed_whatever_is_wrong_with_coordination(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, kind: type[RetryableError]
) -> None:
    async def fails(self: AsyncClient) -> list[str]:
        raise kind("coordination is not at hand, or its disk is full")

    cluster.store("k")
    monkeypatch.setattr(AsyncClient, "list_buckets", fails)
    listed = run("ls")
    assert (listed.exit_code, listed.output) == (0, "b\n")
