"""How every Coffre command ends: one line on stderr, and an exit status that a script can act on."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

import click
from coffre.cluster.errors import (
    CoffreError,
    ConfigurationError,
    IntegrityError,
    InvalidArgument,
    KeyUnavailable,
    NotFound,
    PermissionDenied,
    PolicyViolation,
    RetryableError,
    Unauthenticated,
)

__all__ = ["ExitCode", "exit_code_of", "one_line_errors"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


class ExitCode(enum.IntEnum):
    """Exit status of every command."""

    OK = 0
    FAILURE = 1  # anything not below: the condition of a write, a policy that cannot be kept, a bug
    USAGE = 2  # an option, name, file or setting is wrong (click's own status for bad usage)
    NOT_FOUND = 3
    PERMISSION = 4  # this certificate, or this set of keys, does not open it
    UNAVAILABLE = 5  # the same command may succeed later
    INTEGRITY = 6  # damaged or forged: look at it before anything else


# The first match counts: subclasses stand before their bases.
_EXIT_CODES: tuple[tuple[type[CoffreError], ExitCode], ...] = (
    (PolicyViolation, ExitCode.FAILURE),
    (InvalidArgument, ExitCode.USAGE),
    (ConfigurationError, ExitCode.USAGE),
    (NotFound, ExitCode.NOT_FOUND),
    (PermissionDenied, ExitCode.PERMISSION),
    (Unauthenticated, ExitCode.PERMISSION),
    (KeyUnavailable, ExitCode.PERMISSION),
    (IntegrityError, ExitCode.INTEGRITY),
    (RetryableError, ExitCode.UNAVAILABLE),
)


def exit_code_of(error: CoffreError) -> ExitCode:
    """The exit status that `error` ends a command with."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), ExitCode.FAILURE)


def one_line_errors(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a click command's function, below `@group.command()`: errors become a line and a status."""

    @functools.wraps(command)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return command(*args, **kwargs)
        except CoffreError as error:
            _end(str(error) or type(error).__name__, exit_code_of(error))
        except BrokenPipeError:
            raise  # whoever read the output has gone: no error of this command
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _end(f"{where}{error.strerror or type(error).__name__}", ExitCode.FAILURE)

    return guarded


def _end(message: str, code: ExitCode) -> NoReturn:
    line = " ".join(message.split())
    # A name with control characters must not reach the terminal as they are.
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    click.echo(f"coffre: {shown}", err=True)
    raise SystemExit(int(code))
