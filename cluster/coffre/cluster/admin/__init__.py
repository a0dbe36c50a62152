"""The commands of administrators and operators: `coffre pki`, `cluster`, `repair`, `scrub`, `doctor`.

It decides what people see, and nothing else.
May import: all other rooms.
"""

from coffre.cluster.admin.asking import confirmed
from coffre.cluster.admin.cli_errors import ExitCode, exit_code_of, one_line_errors
from coffre.cluster.admin.groups import CommandGroup
from coffre.cluster.admin.tables import print_table

__all__ = [
    "CommandGroup",
    "ExitCode",
    "confirmed",
    "exit_code_of",
    "one_line_errors",
    "print_table",
]
