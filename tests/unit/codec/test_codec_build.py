"""The build hook: compiles the kernel, and without a compiler warns instead of failing."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))


@pytest.fixture
def hook_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class App:
    """What the hook uses of hatchling's application."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, message: str) -> None:
        self.warnings.append(message)

    def abort(self, message: str) -> None:
        raise SystemExit(message)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of what the hook reads and writes, so that the installed kernel is left alone."""
    (tmp_path / "codec" / "coffre" / "codec").mkdir(parents=True)
    (tmp_path / "codec" / "csrc").symlink_to(ROOT / "codec" / "csrc")
    return tmp_path


def run_hook(module: ModuleType, root: Path, version: str) -> tuple[App, dict[str, Any]]:
    app = App()
    hook = module.KernelBuildHook(str(root), {}, None, None, str(root), "wheel", app)
    build_data: dict[str, Any] = {"force_include": {}}
    hook.initialize(version, build_data)
    return app, build_data


def test_a_compiler_gives_a_working_module(
    hook_module: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    app, build_data = run_hook(hook_module, root, "standard")
    output = root / f"codec/coffre/codec/_kernel{SUFFIX}"
    if app.warnings:
        pytest.skip(f"no compiler here: {app.warnings[0]}")
    assert build_data["force_include"] == {
        str(output): f"coffre/codec/_kernel{SUFFIX}",
        str(root / "deploy/wheel/__init__.py"): "coffre/__init__.py",
    }
    assert build_data["pure_python"] is False
    assert build_data["infer_tag"] is True
    spec = importlib.util.spec_from_file_location("_kernel", output)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("version", ["standard", "editable"])
def test_no_compiler_is_one_warning(
    hook_module: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setenv("CC", "/nonexistent/cc")
    monkeypatch.delenv("COFFRE_REQUIRE_KERNEL", raising=False)
    stale = root / f"codec/coffre/codec/_kernel{SUFFIX}"
    stale.touch()
    app, build_data = run_hook(hook_module, root, version)
    assert len(app.warnings) == 1
    assert (
        "the codec kernel was not compiled (the C compiler '/nonexistent/cc' cannot be run" in app.warnings[0]
    )
    assert str(stale) not in build_data["force_include"]
    assert "pure_python" not in build_data
    assert not stale.exists()


def test_a_compiler_that_fails_is_named(
    hook_module: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "false")
    monkeypatch.delenv("COFFRE_REQUIRE_KERNEL", raising=False)
    app, _ = run_hook(hook_module, root, "standard")
    assert "false failed" in app.warnings[0]


def test_a_required_kernel_fails_the_build(
    hook_module: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "/nonexistent/cc")
    monkeypatch.setenv("COFFRE_REQUIRE_KERNEL", "1")
    with pytest.raises(SystemExit, match="COFFRE_REQUIRE_KERNEL is set, but the kernel was not compiled"):
        run_hook(hook_module, root, "standard")
