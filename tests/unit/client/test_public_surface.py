"""What users may import, and that both faces of the client are the same."""

from __future__ import annotations

import inspect

import coffre.client
import pytest
from coffre.client import AsyncClient, Client
from coffre.cluster import errors
from coffre.cluster.errors import CoffreError, PermanentError, RetryableError


def test_the_names_of_the_package() -> None:
    errors_of_users = set(errors.__all__) - {"details_of", "error_of_status"}
    assert set(coffre.client.__all__) == errors_of_users | {
        "AsyncClient",
        "Client",
        "ClientConfig",
        "ClientOptions",
        "KeyProvider",
        "KeyRing",
        "ListPage",
        "ObjectData",
        "ObjectInfo",
        "RecodeReport",
        "ShardPlace",
        "WrappedKey",
        "connect",
        "connect_sync",
        "load_client_config",
    }
    assert all(hasattr(coffre.client, name) for name in coffre.client.__all__)


def test_every_error_is_public_and_either_permanent_or_retryable() -> None:
    found = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, CoffreError)
    }
    assert found <= set(errors.__all__)
    for name in found - {"CoffreError", "PermanentError", "RetryableError"}:
        cls = getattr(errors, name)
        assert issubclass(cls, PermanentError) != issubclass(cls, RetryableError)


def public(cls: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(value)
        for name, value in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_")
    }


def test_both_faces_have_the_same_methods_with_the_same_parameters() -> None:
    sync, asynchronous = public(Client), public(AsyncClient)
    assert set(sync) - {"close"} == set(asynchronous) - {"aclose"}
    for name in set(sync) - {"close"}:
        assert list(sync[name].parameters) == list(asynchronous[name].parameters), name
        for parameter in sync[name].parameters:
            assert (
                sync[name].parameters[parameter].default == asynchronous[name].parameters[parameter].default
            )


@pytest.mark.parametrize("cls", [AsyncClient, Client])
def test_every_method_says_what_it_does(cls: type) -> None:
    assert not [name for name in public(cls) if not getattr(cls, name).__doc__]


@pytest.mark.parametrize("cls", [AsyncClient, Client])
def test_everything_public_is_annotated(cls: type) -> None:
    for name, signature in public(cls).items():
        assert signature.return_annotation is not inspect.Signature.empty, name
