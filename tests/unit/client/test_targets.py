"""`get_file`: what is no regular file is written into, and a regular one appears whole or not at all."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest
from coffre.client import AsyncClient
from coffre.cluster.errors import InvalidArgument, NotFound
from coffre.dev.in_process import InProcessCluster

MIB = 1 << 20
CONTENT = bytes(range(256)) * (MIB // 64)  # 4 MiB, of several segments


@pytest.fixture
async def client(cluster: InProcessCluster) -> AsyncClient:
    found = cluster.client()
    await found.put("b", "k", CONTENT)
    return found


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_a_device_is_written_into(client: AsyncClient, tmp_path: Path) -> None:
    device = tmp_path / "null"
    os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    try:
        assert await client.get_file("b", "k", device) == len(CONTENT)
    except InvalidArgument as error:  # a file system without devices
        assert "denied" in str(error)  # noqa: PT017
    assert stat.S_ISCHR(device.stat().st_mode)
    assert await client.get_file("b", "k", Path("/dev/null")) == len(CONTENT)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert entries(tmp_path) == ["null"]


async def test_a_pipe_is_written_into(client: AsyncClient, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    getting = asyncio.create_task(client.get_file("b", "k", pipe))
    read = await asyncio.to_thread(pipe.read_bytes)
    assert await getting == len(CONTENT)
    assert read == CONTENT
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert entries(tmp_path) == ["pipe"]


async def test_a_pipe_whose_reader_goes(client: AsyncClient, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def look() -> bytes:
        with pipe.open("rb", buffering=0) as file:
            return file.read(10)

    getting = asyncio.create_task(client.get_file("b", "k", pipe))
    assert await asyncio.to_thread(look) == CONTENT[:10]
    with pytest.raises(InvalidArgument, match="Broken pipe"):
        await getting
    assert stat.S_ISFIFO(pipe.stat().st_mode)


async def test_a_pipe_without_a_reader_can_be_left(client: AsyncClient, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.get_file("b", "k", tmp_path / "pipe"), 0.2)
    os.close(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK))  # lets the thread that opens it go


async def test_what_does_not_exist_touches_nothing(client: AsyncClient, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"precious")
    for name in ("pipe", "file", "new"):
        with pytest.raises(NotFound):  # of the pipe, too, which nobody reads
            await client.get_file("b", "none", tmp_path / name)
    assert (tmp_path / "file").read_bytes() == b"precious"
    assert entries(tmp_path) == ["file", "pipe"]


async def test_links_are_followed(client: AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("there/file")
    (tmp_path / "link2").symlink_to("link")
    (tmp_path / "dangling").symlink_to("there/new")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("link2", "dangling", "null"):
        assert await client.get_file("b", "k", tmp_path / name) == len(CONTENT)
        assert (tmp_path / name).is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == CONTENT
    assert (tmp_path / "there" / "new").read_bytes() == CONTENT
    assert (tmp_path / "link").is_symlink()
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(InvalidArgument, match="loop"):
        await client.get_file("b", "k", tmp_path / "loop")
    assert entries(tmp_path / "there") == ["file", "new"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
async def test_the_mode_of_a_target_stays(client: AsyncClient, tmp_path: Path, mode: int) -> None:
    target = tmp_path / "t"
    target.write_bytes(b"old")
    target.chmod(mode)
    await client.get_file("b", "k", target)
    assert target.read_bytes() == CONTENT
    assert stat.S_IMODE(target.stat().st_mode) == mode


async def test_the_owner_of_a_target_stays(client: AsyncClient, tmp_path: Path) -> None:
    target = tmp_path / "t"
    target.write_bytes(b"old")
    if os.geteuid() == 0:
        os.chown(target, 12345, 12346)
    before = target.stat()
    await client.get_file("b", "k", target)
    assert (target.stat().st_uid, target.stat().st_gid) == (before.st_uid, before.st_gid)


async def test_nobody_else_reads_what_is_on_its_way(client: AsyncClient, tmp_path: Path) -> None:
    """What replaces a private file is private from its first byte on."""
    target = tmp_path / "t"
    target.write_bytes(b"old")
    target.chmod(0o600)
    seen: list[int] = []

    def look(size_bytes: int) -> None:
        seen.extend(stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir())

    await client.get_file("b", "k", target, progress=look)
    assert set(seen) == {0o600}
    assert len(seen) > 2


async def test_a_name_as_long_as_names_get(client: AsyncClient, tmp_path: Path) -> None:
    target = tmp_path / ("n" * 255)
    await client.get_file("b", "k", target)
    assert target.read_bytes() == CONTENT
    with pytest.raises(InvalidArgument, match="too long"):
        await client.get_file("b", "k", tmp_path / ("n" * 256))
    with pytest.raises(InvalidArgument, match="NUL"):
        await client.get_file("b", "k", tmp_path / "a\0b")
    assert entries(tmp_path) == [target.name]


async def test_a_folder_is_no_target(client: AsyncClient, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="directory"):
        await client.get_file("b", "k", tmp_path)
    assert entries(tmp_path) == []


async def test_a_range_of_an_object(client: AsyncClient, tmp_path: Path) -> None:
    target = str(tmp_path / "t")
    assert await client.get_file("b", "k", target, start=MIB - 3, length=MIB + 6) == MIB + 6
    assert (tmp_path / "t").read_bytes() == CONTENT[MIB - 3 : 2 * MIB + 3]


async def test_what_is_open_already_is_written_on_with(client: AsyncClient, tmp_path: Path) -> None:
    """/dev/fd/3 of a log that others append to."""
    with (tmp_path / "log").open("ab") as log:
        log.write(b"before")
        log.flush()
        assert await client.get_file("b", "k", Path(f"/dev/fd/{log.fileno()}"), length=5) == 5
        log.write(b"after")
    assert (tmp_path / "log").read_bytes() == b"before" + CONTENT[:5] + b"after"
    with (tmp_path / "lost").open("w+b") as lost:
        (tmp_path / "lost").unlink()
        await client.get_file("b", "k", Path(f"/proc/{os.getpid()}/fd/{lost.fileno()}"), length=5)
        assert lost.read() == CONTENT[:5]
    assert entries(tmp_path) == ["log"]


async def test_a_get_that_is_cancelled_leaves_no_part(client: AsyncClient, tmp_path: Path) -> None:
    target = tmp_path / "t"
    target.write_bytes(b"precious")
    begun = asyncio.Event()
    getting = asyncio.create_task(client.get_file("b", "k", target, progress=lambda size_bytes: begun.set()))
    await begun.wait()
    assert len(entries(tmp_path)) == 2
    getting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await getting
    assert target.read_bytes() == b"precious"
    assert entries(tmp_path) == ["t"]
