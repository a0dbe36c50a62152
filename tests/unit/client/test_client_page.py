"""docs/client.md names all that the library offers, so that nothing has to be found in its code."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import coffre.client
import pytest
from coffre.client import (
    AsyncClient,
    Client,
    ClientOptions,
    CoffreError,
    KeyProvider,
    KeyRing,
    RetryableError,
    WrappedKey,
)

PAGE = (Path(__file__).parents[3] / "docs/client.md").read_text("utf-8")
CODE = " ".join(re.findall(r"```.*?```|`[^`\n]+`", PAGE, flags=re.DOTALL))
NAMED = set(re.findall(r"[A-Za-z_]+", CODE))


def public(cls: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(cls) if not name.startswith("_")}


def test_every_exported_name_is_there() -> None:
    assert set(coffre.client.__all__) - NAMED == set()


@pytest.mark.parametrize("cls", [AsyncClient, Client, KeyProvider])
def test_every_public_method_is_there(cls: type) -> None:
    assert public(cls) - NAMED == set()


@pytest.mark.parametrize("cls", [ClientOptions, WrappedKey])
def test_every_field_is_there(cls: type) -> None:
    assert {field.name for field in dataclasses.fields(cls)} - NAMED == set()


def test_the_options_are_shown_with_their_defaults() -> None:
    (table,) = re.findall(r"\[options\](.*?)```", PAGE, flags=re.DOTALL)
    shown = dict(re.findall(r"^(\w+) = (\S+)", table, flags=re.MULTILINE))
    assert {name: float(value) for name, value in shown.items()} == dataclasses.asdict(ClientOptions())


def test_every_parameter_is_there() -> None:
    for cls in (AsyncClient, Client):
        for name, method in inspect.getmembers(cls, inspect.isfunction):
            if not name.startswith("_"):
                assert set(inspect.signature(method).parameters) - {"self", "cls"} <= NAMED, name


def test_every_attribute_of_errors_is_there() -> None:
    error = coffre.client.CoffreError()
    assert {name for name in vars(type(error)) if not name.startswith("_")} - NAMED <= {"code", "about"}


def test_keys_are_told_of() -> None:
    assert {"load", "save", "generate", "key_ids", "current"} <= NAMED
    assert {"load", "save", "generate", "key_ids", "current"} <= public(KeyRing)


WORDS = "thread, event loop, fork, gunicorn, Celery, multiprocessing, spawn, Rotation, Certificates, renewal"


@pytest.mark.parametrize("word", WORDS.split(", "))
def test_what_an_application_runs_into_is_there(word: str) -> None:
    assert word in PAGE


def test_when_trying_again_is_worth_it_is_said_as_it_is() -> None:
    """Of every error that is exported: one number for all but those that the page names."""
    (said,) = re.findall(r"`retry_after` after how many seconds(.*?)None\.", PAGE, flags=re.DOTALL)
    usual, *others = re.findall(r"(\w+) for every|`(\w+)` \((\w+):", said)
    hints = {name: None if hint == "None" else float(hint) for _, name, hint in others}
    for error in (getattr(coffre.client, name) for name in coffre.client.__all__):
        if not (inspect.isclass(error) and issubclass(error, CoffreError)) or error is CoffreError:
            continue
        expected = hints.get(error.__name__, float(usual[0]) if issubclass(error, RetryableError) else None)
        assert error.retry_after == expected, error
