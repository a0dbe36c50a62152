"""How commands behave at a terminal, in a pipe, with closed streams, and when they are told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from coffre.dev.local_cluster import ClusterShape, LocalCluster

from tests.integration.terminal import Terminal
from tests.patience import PATIENCE_SECONDS

COFFRE = str(Path(sys.executable).with_name("coffre"))
RECORD = os.urandom(4 << 20)


def environment(cluster: LocalCluster) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COFFRE_CO")}
    kept.pop("COLUMNS", None)
    return kept | {
        "COFFRE_CONFIG": str(cluster.client_config()),
        "COFFRE_OPERATOR_CONFIG": str(cluster.operator_config()),
    }


def shell(cluster: LocalCluster, script: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash, in which $C is the command."""
    return subprocess.run(
        ["bash", "-c", script],
        env=environment(cluster) | {"C": COFFRE},
        input=stdin,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
    )


def start(
    cluster: LocalCluster, *command: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, env=environment(cluster), stdin=stdin, stdout=stdout, stderr=subprocess.PIPE
    )


@pytest.fixture(scope="module")
def stored(running_cluster: LocalCluster) -> LocalCluster:
    """The shared cluster, with a record of several segments and a folder of a thousand names."""
    done = shell(
        running_cluster,
        'd=$(mktemp -d); for i in $(seq 300); do echo > "$d/$i-$(printf "%0200d" $i)"; done; '
        "$C put -q - terminal/record && $C put -q $d terminal/many; rm -r $d",
        stdin=RECORD,
    )
    assert done.returncode == 0, done.stderr
    return running_cluster


# ------------------------------------------------------------------ streams that are closed


@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"])
def test_closed_streams_cost_nothing(stored: LocalCluster, tmp_path: Path, closed: str) -> None:
    """No file or connection gets the number of a standard stream."""
    target = tmp_path / "t"
    done = shell(
        stored, f"$C get -q terminal/record {target} {closed} && $C put {target} terminal/again {closed}"
    )
    assert done.returncode == 0, done.stderr
    assert b"coffre: " not in done.stderr
    assert target.read_bytes() == RECORD


def test_nothing_is_stored_or_shown_by_a_closed_stream(stored: LocalCluster) -> None:
    """An empty object in the place of a record would be worse than any error."""
    done = shell(stored, "$C put - terminal/record <&-")
    assert done.returncode == 2
    assert done.stderr == b"coffre: standard input is closed: there is nothing to store\n"
    assert shell(stored, "$C get terminal/record - >&-").returncode == 2
    assert shell(stored, "$C rm -r terminal/many <&-").returncode == 2  # nobody to ask
    assert shell(stored, "$C get terminal/record -").stdout == RECORD


async def test_a_node_runs_with_closed_streams(tmp_path: Path) -> None:
    cluster = LocalCluster.create(tmp_path / "cluster", ClusterShape())
    cluster.prefix_of = lambda number: ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "node"]
    try:
        await cluster.start([1])
        cluster.kill(1, signal.SIGTERM)
        assert cluster._processes[1].poll() == 0
    finally:
        cluster.stop()


# ------------------------------------------------------------------ readers that go


@pytest.mark.parametrize("command", ["get terminal/record -", "--help", "locate terminal/record"])
def test_a_reader_that_goes_ends_a_command_in_silence(stored: LocalCluster, command: str) -> None:
    done = shell(stored, f"$C {command} | true; echo ${{PIPESTATUS[0]}}")
    assert done.stdout in (b"141\n", b"0\n")
    assert done.stderr == b""


def test_head_takes_what_it_wants(stored: LocalCluster) -> None:
    done = shell(stored, "$C get terminal/record - | head -c 7; echo ${PIPESTATUS[0]}")
    assert done.stdout == RECORD[:7] + b"141\n"
    assert done.stderr == b""


def test_output_that_cannot_be_written_is_one_line(stored: LocalCluster) -> None:
    for command in ("get terminal/record -", "--help"):
        done = shell(stored, f"$C {command} > /dev/full")
        assert done.returncode == 1
        assert done.stderr.count(b"\n") == 1, done.stderr
        assert b"No space left" in done.stderr


# ------------------------------------------------------------------ signals


SELF_SIGNALLED = """
import os, sys
from coffre.client import AsyncClient
whole = AsyncClient.get_file
async def get_file(self, *arguments, progress, **options):
    def tell(size_bytes):
        print(os.listdir(os.path.dirname(sys.argv[-1])), file=sys.stderr)
        os.kill(os.getpid(), int(os.environ["SIGNAL"]))
    return await whole(self, *arguments, progress=tell, **options)
AsyncClient.get_file = get_file
from coffre.cli import main
main()
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_get_that_is_ended_leaves_nothing_behind(
    stored: LocalCluster, tmp_path: Path, signum: signal.Signals
) -> None:
    """The signal comes with the first bytes."""
    target = tmp_path / "t"
    target.write_bytes(b"precious")
    done = subprocess.run(
        [sys.executable, "-c", SELF_SIGNALLED, "get", "terminal/record", str(target)],
        env=environment(stored) | {"SIGNAL": str(int(signum))},
        capture_output=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 128 + signum
    assert b".part" in done.stderr  # it had begun
    assert b"Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_whoever_waits_for_a_pipe_can_be_ended(
    stored: LocalCluster, tmp_path: Path, signum: signal.Signals
) -> None:
    """Standard input that says nothing, output that nobody reads."""
    silent, kept = os.pipe()
    for command, stdin, stdout in (
        (("put", "-", "terminal/never"), silent, subprocess.DEVNULL),
        (("get", "terminal/record", "-"), subprocess.DEVNULL, kept),
    ):
        process = start(stored, COFFRE, *command, stdin=stdin, stdout=stdout)
        _wait_until_blocked_in_a_pipe(process)
        process.send_signal(signum)
        assert process.wait(PATIENCE_SECONDS) == 128 + signum
        assert b"Traceback" not in process.communicate()[1]
    os.close(silent)
    os.close(kept)
    assert shell(stored, "$C stat terminal/never").returncode == 3


def _wait_until_blocked_in_a_pipe(process: subprocess.Popen[bytes]) -> None:
    """One of its threads says so to /proc."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        if any(map(_waits_in_a_pipe, Path(f"/proc/{process.pid}/task").iterdir())):
            return
        with suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"it ended: {process.wait(0.01)}")
    raise AssertionError("it never waited for the pipe")


def _waits_in_a_pipe(task: Path) -> bool:
    try:
        number, first, *_ = (task / "syscall").read_text().split()
        descriptor = int(first, 16)
        where = str((task.parent.parent / "fd" / str(descriptor)).readlink())
    except (OSError, ValueError):
        return False
    return number in {"0", "1"} and descriptor in {0, 1} and where.startswith("pipe:")


# ------------------------------------------------------------------ terminals


@pytest.fixture
def doomed(stored: LocalCluster) -> Iterator[str]:
    """A folder with a neighbour of a longer name."""
    script = "for k in old/a old/b older/c; do echo $k | $C put -q - terminal/$k; done"
    assert shell(stored, script).returncode == 0
    yield "terminal/old"
    shell(stored, "$C rm -rfy terminal/old terminal/older")


def below(cluster: LocalCluster) -> list[str]:
    return shell(cluster, "$C ls -r terminal/old").stdout.decode().split()


def test_rm_asks_at_a_terminal(stored: LocalCluster, doomed: str) -> None:
    for answer, status, left in (
        ("\n", 1, 3),
        ("\x03", 130, 3),
        ("y\n", 0, 1),
    ):
        with Terminal([COFFRE, "rm", "-r", doomed], environment(stored)) as terminal:
            terminal.until("terminal/old/: 2 objects, 12 bytes")
            terminal.until("Delete them? [y/N]: ")
            if answer == "\x03":
                assert terminal.interrupt() == status, terminal.shown
            else:
                terminal.enter(answer)
                assert terminal.end() == status, terminal.shown
            assert "Traceback" not in terminal.shown
        assert len(below(stored)) == left


def test_what_would_change_the_map_can_be_interrupted_at_its_question(stored: LocalCluster) -> None:
    command = [COFFRE, "cluster", "set-capacity", stored.map.nodes[0].node_id, "3TB"]
    with Terminal(command, environment(stored)) as terminal:
        terminal.until("Go on?")
        assert terminal.interrupt() == 130, terminal.shown
    assert b"no change is under way" in shell(stored, "$C cluster status").stdout


def test_a_narrow_terminal_loses_nothing_of_a_table(stored: LocalCluster) -> None:
    node = stored.map.nodes[0]
    with Terminal([COFFRE, "cluster", "status"], environment(stored), 80) as terminal:
        assert terminal.end() == 0, terminal.shown
    for word in (node.node_id, "say the others", "capacity", "version", "shards"):
        assert word in terminal.shown, terminal.shown
    assert max(map(len, terminal.shown.splitlines())) <= 80
