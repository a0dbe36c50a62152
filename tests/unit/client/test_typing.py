"""What a type checker says of code that uses the library: README's sample, paths as text, lists of objects."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from coffre.client import InvalidArgument, KeyRing, connect_sync, load_client_config
from coffre.cluster.errors import ConfigurationError
from mypy import api

ROOT = Path(__file__).parents[3]
SAMPLE = """
import io
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from coffre.client import Client, KeyRing, ObjectData, ObjectInfo, connect, connect_sync, load_client_config


def use(client: Client, path: os.PathLike[str], pure: Path) -> None:
    for entry in client.list("b"):
        print(entry.key, entry.size_bytes)
    for entry in client.list("b", prefix="p/", page_size=10, timeout=1.5):
        print(entry.key)
    names: list[str] = [each if isinstance(each, str) else each.key for each in client.list("b", delimiter="/")]
    client.put_file("b", "k", "name")
    client.put_file("b", "k", path)
    client.get_file("b", "k", pure)
    KeyRing.load("ring", b"passphrase").save(path, b"passphrase")
    load_client_config("client.toml")
    with open(pure, "rb") as file:
        client.put("b", "k", file)
    client.put("b", "k", io.BytesIO(b"1"))
    client.put("b", "k", [b"1", b"2"])
    client.put("b", "k", bytearray(b"1"))
    client.get_stream("b", "k").close()


async def asynchronous(chunks: AsyncIterator[bytes], data: ObjectData) -> list[ObjectInfo]:
    async with await connect("client.toml") as client:
        await client.put("b", "k", chunks)
        await client.put("b", "k", data)
        return [entry async for entry in client.list("b")]
"""


def test_the_samples_pass_mypy_strict(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    named = block.replace("connect_sync()", 'connect_sync("client.toml")')
    sources = {"readme.py": block, "named.py": named, "sample.py": SAMPLE}
    for name, text in sources.items():
        (tmp_path / name).write_text(text)
    cache = f"--cache-dir={ROOT / '.mypy_cache' / 'samples'}"
    files = [str(tmp_path / name) for name in sources]
    out, errors, status = api.run(["--strict", f"--config-file={ROOT / 'pyproject.toml'}", cache, *files])
    assert status == 0, out + errors


def test_paths_are_text_or_like_paths(tmp_path: Path) -> None:
    """That they are tried at all shows in the error: there is nothing there."""
    for path in (str(tmp_path / "none.toml"), tmp_path / "none.toml"):
        for call in (connect_sync, load_client_config):
            with pytest.raises(ConfigurationError, match="cannot read"):
                call(path)
    ring = KeyRing.generate()
    ring.save(str(tmp_path / "ring"), b"p")
    assert KeyRing.load(str(tmp_path / "ring"), b"p").key_ids == ring.key_ids
    for wrong in (b"client.toml", 7):
        with pytest.raises(InvalidArgument, match="a path is text"):
            connect_sync(wrong)  # type: ignore[arg-type]
