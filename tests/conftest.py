"""What holds for all tests: the order in which they run, and signals as a terminal has them."""

from __future__ import annotations

import signal

import pytest


def pytest_configure() -> None:
    """What runs in the background, or below nohup, ignores signals, and so would all that a test starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """By file, which lets tests of a file share what they start, but for the few that take longest."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)
