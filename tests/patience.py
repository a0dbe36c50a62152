"""How long a test waits for what processes, or another thread, come to by themselves: a deadline against hanging.

It measures nothing. A wait ends as soon as the state is there, so patience costs nothing, and a machine that is slow or
busy makes no test red. Whatever has to happen within a time is a figure of its own, beside the test that says so.
"""

from __future__ import annotations

__all__ = ["PATIENCE_SECONDS"]

PATIENCE_SECONDS = 120.0
