"""Build hook: compiles the Reed-Solomon kernel; an install without a C compiler still works, on zfec."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelBuildHook(BuildHookInterface[Any]):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile codec/ in place and add the shared object to the wheel."""
