"""The `coffre` command: objects here, and the branches that the other rooms bring (`coffre.commands` entry points)."""

from __future__ import annotations

import ctypes
import gc
import io
import os
import signal
import sys
from typing import NoReturn

__all__ = ["main"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 32 << 20
_MAPPED_BYTES = 8 << 20


def _keep_freed_memory() -> None:
    """Let malloc keep a little of what is freed: messages of a megabyte come and go, and each would otherwise be
    mapped, faulted in page by page and given back. glibc; elsewhere nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def _collect_seldom() -> None:
    """Look for cycles of objects less often: operations make thousands of objects, and hardly a cycle."""
    gc.set_threshold(10_000, 20, 20)


def _open_streams() -> None:
    """Open what the caller closed of standard input, output and error, so that no file or socket gets its number.

    What is written goes nowhere; reading fails, for nobody meant nothing by it. `sys.__stdin__` and `sys.__stdout__`
    stay None, which commands that move data by them look at.
    """
    for descriptor, flags in ((0, os.O_WRONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest number that is free: this one
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a name that the terminal has no letters for is no reason to fail
            stream.reconfigure(errors="backslashreplace")


def _run() -> int:
    """Run the command; return its exit status."""
    import click
    from coffre.cli._tree import tree

    output = sys.stdout
    try:
        result = tree.main(prog_name="coffre", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort as error:
        if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        click.echo("coffre: nothing is done", err=True)
        return 1
    except SystemExit:
        if sys.stdout is not output:  # click's way to end by a broken pipe
            raise BrokenPipeError from None
        raise
    return result if type(result) is int else 0  # click's own: what a command returns is None


def _die_by(signum: signal.Signals) -> NoReturn:
    """End as a program that never heard of the signal, and so without a word."""
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    os._exit(128 + signum)  # it is blocked


def _drop_output() -> None:
    """Let what is left of standard output go nowhere: the interpreter would try once more to write it, and say so."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def main() -> None:
    """Entry point of the `coffre` command."""
    _open_streams()
    try:
        _keep_freed_memory()
        _collect_seldom()
        status = _run()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`: whoever reads has what was wanted
        _die_by(signal.SIGPIPE)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends; who presses twice changes nothing
        status = 128 + signal.SIGINT
    except OSError as error:
        sys.stderr.write(f"coffre: cannot write: {error.strerror}\n")
        _drop_output()
        status = 1
    sys.exit(status)
