"""The commands of administrators and operators: `coffre pki`, `cluster`, `repair`, `scrub`, `doctor`.

It decides what people see, and nothing else.
May import: all other rooms.
"""

from coffre.cluster.admin.cli_errors import one_line_errors

__all__ = [
    "one_line_errors",
]
