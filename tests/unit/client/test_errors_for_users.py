"""What an application sees of errors: attributes, no addresses, one class for wrong arguments; and logs that are silent
until it asks for them."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from coffre.client import (
    AlreadyExists,
    AsyncClient,
    ClientOptions,
    CoffreError,
    ConfigurationError,
    InternalError,
    InvalidArgument,
    KeyRing,
    NotEmpty,
    NotFound,
    PreconditionFailed,
    ResourceExhausted,
    RetryableError,
    Unavailable,
    load_client_config,
)
from coffre.dev.in_process import InProcessCluster, Traffic
from coffre.proto import coffre_pb2 as pb

VERSION = "0" * 32


async def test_errors_say_what_they_are_about(cluster: InProcessCluster) -> None:
    client = cluster.client()
    with pytest.raises(NotFound) as found:
        await client.get("b", "none", version=VERSION)
    assert (found.value.bucket, found.value.key, found.value.version) == ("b", "none", VERSION)
    assert found.value.retry_after is None
    info = await client.put("b", "k", b"1")
    newer = await client.put("b", "k", b"2")
    with pytest.raises(AlreadyExists) as exists:
        await client.put("b", "k", b"3", if_absent=True)
    assert (exists.value.key, exists.value.current_version) == ("k", newer.version)
    for call in (
        client.put("b", "k", b"3", if_version=info.version),
        client.delete("b", "k", if_version=info.version),
    ):
        with pytest.raises(PreconditionFailed) as failed:
            await call
        assert (failed.value.version, failed.value.current_version) == (info.version, newer.version)
    await client.delete("b", "k")
    with pytest.raises(PreconditionFailed) as gone:
        await client.put("b", "k", b"3", if_version=newer.version)
    assert gone.value.current_version is None
    await client.create_bucket("b")
    with pytest.raises(AlreadyExists) as bucket:
        await client.create_bucket("b")
    assert (bucket.value.bucket, bucket.value.key) == ("b", None)


async def test_one_answer_to_many_calls_names_each(cluster: InProcessCluster) -> None:
    """Operations that travel in one message fail with one error; each caller's says its own name."""
    client = cluster.client()
    cluster.network.down = {1, 2, 3, 4, 5, 6}
    errors = await client.get_many("b", ["x", "y", "z"])
    assert [error.key for error in errors if isinstance(error, CoffreError)] == ["x", "y", "z"]
    assert all(isinstance(error, RetryableError) and error.retry_after for error in errors)


async def test_nodes_are_called_by_their_names(cluster: InProcessCluster) -> None:
    """Not by the numbers that maps give them."""
    client = cluster.client()

    async def full(node: int, message: Traffic) -> None:
        if isinstance(message, pb.BatchReply):
            count = len(message.votes) or len(message.outcomes)
            full_disk = pb.Outcome(code=ResourceExhausted.code, detail="the disk of this node is full")
            message.CopyFrom(pb.BatchReply(outcomes=[full_disk] * count))

    cluster.network.after = full
    with pytest.raises(RetryableError) as refused:
        await client.put("b", "k", b"1")
    for number in cluster.stores:
        assert f"node n{number}: the disk of this node is full" in str(refused.value)


async def test_an_error_that_the_client_makes_of_an_answer_says_whose_it_was(
    cluster: InProcessCluster,
) -> None:
    async def too_few(node: int, message: Traffic) -> None:
        if isinstance(message, pb.BatchReply):
            message.CopyFrom(pb.BatchReply())

    cluster.network.after = too_few
    peer = cluster.client()._views.current.peers[3]
    with pytest.raises(InternalError) as wrong:
        await peer.reads.submit(pb.Operation(read=pb.Read(bucket="b", key="k")))
    assert wrong.value.node == "n3"
    assert "node n3 did not answer 1 operations" in str(wrong.value)


def test_errors_travel_between_processes() -> None:
    error = PreconditionFailed("text", bucket="b", key="k", current_version=VERSION, details="at 10.0.0.1")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), error.about(version="v")):
        assert type(other) is PreconditionFailed
        assert str(other) == "text"
        assert (other.bucket, other.key, other.current_version) == ("b", "k", VERSION)
        assert other.details == "at 10.0.0.1"
    assert error.version is None
    assert error.about(bucket="other").bucket == "b"


async def test_a_bucket_that_holds_objects_is_not_deleted(cluster: InProcessCluster) -> None:
    client = cluster.client()
    await client.create_bucket("full")
    await client.put("full", "k", b"1")
    with pytest.raises(NotEmpty, match="holds objects") as error:
        await client.delete_bucket("full")
    assert error.value.bucket == "full"
    assert await client.list_buckets() == ["full"]
    await client.delete("full", "k")
    await client.delete_bucket("full")
    with pytest.raises(NotFound):
        await client.delete_bucket("full")


# -------------------------------------------------------------------- at the door

WRONG: dict[str, Callable[[AsyncClient], object]] = {
    "bucket": lambda client: client.get(1, "k"),  # type: ignore[arg-type]
    "bucket of bytes": lambda client: client.put(b"b", "k", b""),  # type: ignore[arg-type]
    "no bucket": lambda client: client.head(None, "k"),  # type: ignore[arg-type]
    "unhashable bucket": lambda client: client.list_page([]),  # type: ignore[arg-type]
    "key": lambda client: client.get("b", 7),  # type: ignore[arg-type]
    "key of bytes": lambda client: client.delete("b", b"k"),  # type: ignore[arg-type]
    "no key": lambda client: client.locate("b", None),  # type: ignore[arg-type]
    "path for a key": lambda client: client.versions("b", Path("k")),  # type: ignore[arg-type]
    "version": lambda client: client.get("b", "k", version=1),  # type: ignore[arg-type]
    "version of bytes": lambda client: client.head("b", "k", version=b"0" * 32),  # type: ignore[arg-type]
    "version too short": lambda client: client.head("b", "k", version="12"),
    "if_version": lambda client: client.put("b", "k", b"", if_version=3),  # type: ignore[arg-type]
    "if_absent": lambda client: client.put("b", "k", b"", if_absent="no"),  # type: ignore[arg-type]
    "start": lambda client: client.get("b", "k", start="0"),  # type: ignore[arg-type]
    "start of a fraction": lambda client: client.get("b", "k", start=0.5),  # type: ignore[arg-type]
    "negative start": lambda client: client.get("b", "k", start=-1),
    "length": lambda client: client.get("b", "k", length="9"),  # type: ignore[arg-type]
    "negative length": lambda client: client.get("b", "k", length=-9),
    "content type": lambda client: client.put("b", "k", b"", content_type=None),  # type: ignore[arg-type]
    "metadata": lambda client: client.put("b", "k", b"", metadata=["a"]),  # type: ignore[arg-type]
    "metadata of a number": lambda client: client.put("b", "k", b"", metadata={"a": 1}),  # type: ignore[dict-item]
    "metadata of bytes": lambda client: client.put("b", "k", b"", metadata={b"a": "1"}),  # type: ignore[dict-item]
    "progress": lambda client: client.put_file("b", "k", "/etc/hostname", progress=1),  # type: ignore[arg-type]
    "path to read": lambda client: client.put_file("b", "k", 3),  # type: ignore[arg-type]
    "path to write": lambda client: client.get_file("b", "k", b"f"),  # type: ignore[arg-type]
    "items": lambda client: client.put_many("b", 3),  # type: ignore[arg-type]
    "items of a mapping": lambda client: client.put_many("b", {"k": b"1"}),  # type: ignore[dict-item]
    "keys": lambda client: client.get_many("b", "key"),
    "no keys": lambda client: client.get_many("b", None),  # type: ignore[arg-type]
    "prefix": lambda client: client.list_page("b", prefix=b"p"),  # type: ignore[arg-type]
    "delimiter": lambda client: client.list_page("b", delimiter=None),  # type: ignore[arg-type]
    "limit": lambda client: client.list_page("b", limit="10"),  # type: ignore[arg-type]
    "limit out of bounds": lambda client: client.list_page("b", limit=1001),
    "token": lambda client: client.list_page("b", token=5),  # type: ignore[arg-type]
    "token of another list": lambda client: client.list_page("b", token="zz"),
    "policy": lambda client: client.create_bucket("b", policy=None),  # type: ignore[arg-type]
    "new bucket": lambda client: client.create_bucket(5),  # type: ignore[arg-type]
    "old bucket": lambda client: client.delete_bucket(None),  # type: ignore[arg-type]
    "recode": lambda client: client.recode(b"b"),  # type: ignore[arg-type]
    "rate": lambda client: client.recode("b", bytes_per_second="fast"),  # type: ignore[arg-type]
    "dry run": lambda client: client.recode("b", dry_run=1),  # type: ignore[arg-type]
    "timeout": lambda client: client.flush(timeout="1"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WRONG)
async def test_wrong_arguments_are_refused_at_the_door(cluster: InProcessCluster, name: str) -> None:
    client = cluster.client()
    with pytest.raises(InvalidArgument):
        await WRONG[name](client)  # type: ignore[misc]
    assert not cluster.network.messages


@pytest.mark.parametrize("wrong", [{"delimiter": 1}, {"page_size": 0}, {"prefix": None}, {"timeout": -1}])
async def test_lists_and_streams_are_checked_when_they_are_asked_for(
    cluster: InProcessCluster, wrong: dict[str, str]
) -> None:
    client = cluster.client()
    with pytest.raises(InvalidArgument):
        client.list("b", **wrong)  # type: ignore[call-overload]
    with pytest.raises(InvalidArgument):
        client.get_stream("b", "k", start=-1)


async def test_items_of_many_are_refused_one_by_one(cluster: InProcessCluster) -> None:
    client = cluster.client()
    items = [("good", b"1"), (2, b"2"), ("text", "text"), "ab", ("three", b"3", b"4"), ("none", None)]
    outcomes = await client.put_many("b", items)  # type: ignore[arg-type]
    assert [isinstance(outcome, InvalidArgument) for outcome in outcomes] == [False, *[True] * 5]
    got = await client.get_many("b", ["good", 2])  # type: ignore[list-item]
    assert got[0] == b"1"
    assert isinstance(got[1], InvalidArgument)


# -------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": "5"},
        {"timeout": None},
        {"timeout": float("nan")},
        {"patience": -0.1},
        {"stall_timeout": 0},
        {"hedge_delay": True},
        {"compress_level": 0},
        {"compress_level": 23},
        {"compress_level": 3.5},
    ],
    ids=str,
)
def test_options_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(wrong))):
        ClientOptions(**wrong)  # type: ignore[arg-type]


SETTINGS = """
map = "cluster.map"
authority = "ca.crt"
certificate = "clinic.crt"
key = "clinic.key"
keyring = "keyring.json"
"""


def test_options_in_client_toml(tmp_path: Path) -> None:
    path = tmp_path / "client.toml"
    path.write_text(SETTINGS)
    assert load_client_config(path).options == ClientOptions()
    path.write_text(SETTINGS + "[options]\ncompress_level = false\npatience = 10\ntimeout = 2.5\n")
    found = load_client_config(str(path)).options
    assert found == ClientOptions(compress_level=None, patience=10.0, timeout=2.5)
    for wrong in ("timeout = 0", "timeout = 'x'", "time = 1", "compress_level = true"):
        path.write_text(f"{SETTINGS}[options]\n{wrong}\n")
        with pytest.raises(ConfigurationError, match=r"\[options\]"):
            load_client_config(path)
    path.write_text(SETTINGS + "options = 3\n")
    with pytest.raises(ConfigurationError, match=r"\[options\]"):
        load_client_config(path)


def test_keys_and_options_of_a_wrong_type(cluster: InProcessCluster) -> None:
    for wrong in ({"keys": b"secret"}, {"options": {"timeout": 1}}):
        arguments = {"keys": KeyRing.generate(), **wrong}
        with pytest.raises(InvalidArgument):
            AsyncClient(cluster.cluster_map, None, tenant="t", **arguments)  # type: ignore[arg-type]


# -------------------------------------------------------------------- logs


async def test_what_goes_wrong_behind_the_calls_is_logged(
    cluster: InProcessCluster, caplog: pytest.LogCaptureFixture
) -> None:
    client = cluster.client()
    with caplog.at_level(logging.DEBUG, logger="coffre"):
        cluster.network.down = {2}
        await client.put("b", "secret-name", b"1")
        await client.flush()
        cluster.network.down = set()
        for _ in range(20):
            await client.put("b", "secret-name", b"1")
            await client.flush()
            await asyncio.sleep(0)
        await client.aclose()
    texts = [record.getMessage() for record in caplog.records if record.name.startswith("coffre.")]
    assert "node n2 does not answer" in texts
    assert "node n2 answers again" in texts
    assert not any("secret-name" in text for text in texts)


def test_logs_are_silent_until_somebody_asks() -> None:
    program = """
import logging, coffre.client
logging.getLogger("coffre.client").error("not for standard error")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


async def test_users_see_no_addresses(cluster: InProcessCluster) -> None:
    """Whatever the nodes' errors hold for administrators, it is in `details` alone."""

    async def refuse(node: int, message: object) -> None:
        raise Unavailable(
            f"node n{node}: it cannot be reached", node=f"n{node}", details=f"n{node} (10.0.0.{node}:7000)"
        )

    client = cluster.client()
    cluster.network.before = refuse
    for call in (
        client.get("b", "k"),
        client.put("b", "k", b"1"),
        client.put("b", "k", bytes(2 << 20)),
        client.list_page("b"),
        client.delete("b", "k"),
    ):
        with pytest.raises(Unavailable) as error:
            await call
        assert "10.0.0." not in str(error.value)
        assert "10.0.0." in error.value.details
