"""Questions on a terminal, also from within an event loop."""

from __future__ import annotations

import signal
import threading

import click

__all__ = ["confirmed"]


def confirmed(question: str) -> bool:
    """Ask on standard error; Ctrl-C is an answer, although an event loop has taken SIGINT for itself.

    Raises `click.Abort` on Ctrl-C and at the end of input.
    """
    if threading.current_thread() is not threading.main_thread():
        return click.confirm(question, err=True)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return click.confirm(question, err=True)
    finally:
        signal.signal(signal.SIGINT, before)
