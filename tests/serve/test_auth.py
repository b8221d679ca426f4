"""Keys open what their scopes say, are shown once, and stop when revoked."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from nextbest.errors import NotFoundError, UsageError
from nextbest.serve.auth import SCOPES, authenticate, create_key, list_keys, revoke_key
from nextbest.serve.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.at(tmp_path / "store.db")
    yield store
    store.close()


def test_a_token_names_its_caller_and_scopes(store: Store) -> None:
    key, token = create_key(store, "web", ["outcomes", "decide"])
    caller = authenticate(store, token)
    assert caller is not None
    assert (caller.key_id, caller.scopes) == (key.key_id, ("decide", "outcomes"))
    assert [caller.may(scope) for scope in SCOPES] == [True, True, False, False]


def test_admin_may_do_everything(store: Store) -> None:
    _, token = create_key(store, "ops", ["admin"])
    caller = authenticate(store, token)
    assert caller is not None and all(caller.may(scope) for scope in SCOPES)


def test_the_secret_is_nowhere_in_the_store(store: Store, tmp_path: Path) -> None:
    _, token = create_key(store, "web", ["decide"])
    secret = token.split("_", 2)[2]
    with sqlite3.connect(tmp_path / "store.db") as connection:
        dump = "\n".join(connection.iterdump())
    assert "web" in dump and secret not in dump


def test_a_revoked_key_opens_nothing(store: Store) -> None:
    key, token = create_key(store, "web", ["decide"])
    _, other = create_key(store, "app", ["decide"])
    revoke_key(store, key.key_id)
    assert authenticate(store, token) is None
    assert authenticate(store, other) is not None
    assert [found.revoked_at is None for found in list_keys(store)] == [False, True]
    with pytest.raises(NotFoundError, match="no valid key"):
        revoke_key(store, key.key_id)


def test_forged_tokens_open_nothing(store: Store) -> None:
    key, token = create_key(store, "web", ["admin"])
    _, other = create_key(store, "app", ["decide"])
    secret_of_other = other.split("_", 2)[2]
    forged = [
        None,
        "",
        "nb_",
        "Bearer",
        token[:-1],
        token + "x",
        token + "\n",
        token[:-1] + ("A" if token[-1] != "A" else "B"),
        f"nb_{key.key_id}_{secret_of_other}",
        f"nb_{'0' * 12}_{secret_of_other}",
        token.upper(),
        "nb_%_" + secret_of_other,
    ]
    assert [authenticate(store, attempt) for attempt in forged] == [None] * len(forged)


@pytest.mark.parametrize(
    ("name", "scopes", "says"),
    [
        ("web", [], "a key needs a scope"),
        ("web", ["decide", "deside"], 'there is no scope "deside".*Did you mean "decide"'),
        (" ", ["decide"], "name is unusable"),
        ("x" * 129, ["decide"], "name is unusable"),
        ("a\nb", ["decide"], "name is unusable"),
    ],
)
def test_unusable_keys_are_refused(store: Store, name: str, scopes: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        create_key(store, name, scopes)
    assert list_keys(store) == []
