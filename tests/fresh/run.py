"""README's commands in a minimal Debian, as somebody types them who has just installed one: `make test-fresh`, as root.

debootstrap makes the Debian in a folder of its own; nothing of the machine around it is seen but the network. First
without python3-dev: setup must stop and say what is missing. Then as README says: its apt-get line, `make run` (which
ends by itself here) and `make test`.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
MIRROR = "http://deb.debian.org/debian"
HOME = "root/coffre"  # where the checkout is, in the Debian
# How this machine reaches the network; files that are named so are carried over, too.
PASSED_ON = re.compile(r"(?i)(https?_proxy|no_proxy|pip_(extra_)?index_url|pip_trusted_host)")
CERTIFICATES = ("PIP_CERT", "SSL_CERT_FILE")
NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf")
MOUNTS = "mount --make-rprivate / && mount -t proc proc {0}/proc && mount --rbind /dev {0}/dev"


def commands_of_readme() -> list[str]:
    """What "Try it" says to type: the apt-get line, and the plain make commands."""
    section = (ROOT / "README.md").read_text("utf-8").partition("\n## Try it\n")[2].partition("\n## ")[0]
    lines = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    return [line for line in lines if re.fullmatch(r"apt-get install .*|make [a-z]+", line)]


class Debian:
    """A Debian in a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "DEBIAN_FRONTEND": "noninteractive",
            **{name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)},
        }

    def make(self, suite: str, mirror: str, base: Path | None) -> None:
        """A minimal system, and a copy of this checkout in it."""
        if base is not None:
            subprocess.run(["cp", "-a", f"{base}/.", self.place], check=True)
        else:
            subprocess.run(["debootstrap", "--variant=minbase", suite, str(self.place), mirror], check=True)
        for name in filter(os.path.isfile, NETWORK_FILES):
            shutil.copyfile(name, self.place / name[1:])
        for name in CERTIFICATES:
            if Path(os.environ.get(name, "")).is_file():
                shutil.copyfile(os.environ[name], self.place / "root" / name)
                self._environment[name] = f"/root/{name}"
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        for name in filter(None, listed.decode().split("\0")):
            if (ROOT / name).is_file():
                target = self.place / HOME / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, target)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout; its mounts and processes end with it. Shows what it prints."""
        print(f"\n# {command}", flush=True)
        inside = f"cd /{HOME} && {command}"
        script = f"{MOUNTS.format(self.place)} && exec chroot {self.place} sh -c {shlex.quote(inside)}"
        done = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(done.stdout[-6000:], flush=True)
        return done

    def must(self, command: str) -> str:
        """What a command prints that succeeds; ends the run otherwise."""
        done = self.run(command)
        if done.returncode != 0:
            sys.exit(f"{command}: status {done.returncode}")
        return done.stdout


def expect(met: bool, what: str) -> None:
    if not met:
        sys.exit(f"expected: {what}")


def try_readme(debian: Debian, arguments: str) -> None:
    """First without python3-dev, then README's own commands."""
    install, *makes = commands_of_readme()
    expect(makes == ["make run", "make test"], f"README says `make run` and `make test`, not {makes}")
    debian.must("apt-get update -qq")
    debian.must(install.replace(" python3-dev", "") + " -qq")
    refused = debian.run("make run ARGS=--once")
    expect(refused.returncode != 0 and install in refused.stdout, "a stop that says the apt-get line")
    expect(not (debian.place / HOME / ".venv").exists(), "nothing is installed before that")
    debian.must(f"{install} -qq")
    said = debian.must("make run ARGS=--once")
    expect("came back bit for bit" in said, "the demo says that everything came back")
    expect("zfec" not in said, "the C kernel is used")
    debian.must(f"make test ARGS={shlex.quote(arguments)}")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make test-fresh", description=__doc__)
    parser.add_argument("--suite", default="bookworm", help="of Debian")
    parser.add_argument("--mirror", default=MIRROR)
    parser.add_argument(
        "--base", type=Path, help="a folder that debootstrap made before; a copy of it is used"
    )
    parser.add_argument("--tests", default="", help="more arguments of `make test`")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        sys.exit("make test-fresh has to be root: debootstrap and chroot are")
    place = Path(tempfile.mkdtemp(prefix="coffre-fresh-", dir="/var/tmp"))
    try:
        debian = Debian(place)
        debian.make(options.suite, options.mirror, options.base)
        try_readme(debian, options.tests)
    finally:
        shutil.rmtree(place)
    print("README's commands do what they say in a minimal Debian")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
