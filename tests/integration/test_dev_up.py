"""`coffre dev up`: an empty cluster that stays up, what it says is enough to use it, and nothing is left of it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from tests.patience import PATIENCE_SECONDS

COFFRE = str(Path(sys.executable).with_name("coffre"))


def run(home: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Without a terminal, as somebody whose environment says nothing of Coffre."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("COFFRE_")}
    return subprocess.run(
        command,
        cwd=home,
        env={**own, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def processes_of(directory: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        if os.fsencode(directory) in line:
            found.append(line.decode(errors="replace"))
    return found


def test_it_stays_up_and_what_it_prints_is_enough(tmp_path: Path) -> None:
    directory = tmp_path / "a cluster"
    command = [COFFRE, "dev", "up", "--dir", str(directory), "--tenant", "clinic", "--tenant", "lab"]
    up = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert up.stdout is not None
    try:
        said = []
        for line in up.stdout:
            said.append(line)
            if line.startswith("# then"):
                break
        pasted = "".join(line for line in said if line.startswith("export "))
        assert pasted.count("\n") == 1
        script = f"{pasted}{shlex.quote(COFFRE)} ls notes && echo x | {shlex.quote(COFFRE)} put - notes/a && "
        script += f"{shlex.quote(COFFRE)} get notes/a -"
        used = run(tmp_path, "sh", "-c", script)
        assert (used.returncode, used.stdout.splitlines()[-1]) == (0, "x"), used.stderr
        lab = next(line for line in said if line.startswith("# as lab: "))
        config = shlex.split(lab.removeprefix("# as lab: "))[0]
        operator = str(directory / "operator.toml")
        doctor = run(tmp_path, COFFRE, "doctor", "--operator", operator)
        assert "capacity" not in doctor.stdout + doctor.stderr, doctor.stdout
        assert run(tmp_path, COFFRE, "get", "notes/a", "-", COFFRE_CONFIG=config).returncode == 3

        again = run(tmp_path, *command)
        assert (again.returncode, again.stderr.count("\n")) == (2, 1)
        assert "is in use" in again.stderr
        assert up.poll() is None
    finally:
        up.send_signal(signal.SIGINT)
        status = up.wait(timeout=PATIENCE_SECONDS)
        up.stdout.close()
    assert status == 0
    assert not processes_of(directory)


def test_a_command_runs_beside_it_and_gives_the_status(tmp_path: Path) -> None:
    script = "import os, sys; from coffre.client import connect_sync\n"
    script += "with connect_sync() as client:\n    client.put('b', 'k', b'x', if_absent=True); sys.exit(7)"
    done = run(tmp_path, COFFRE, "dev", "up", "--", sys.executable, "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
    nonsense = run(tmp_path, COFFRE, "dev", "up", "--dir", "/proc", "--", "true")
    assert "is not empty and holds no development cluster" in nonsense.stderr
    assert not processes_of(tmp_path)
