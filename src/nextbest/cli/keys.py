"""`nextbest keys`: who may call the API."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nextbest.cli.options import HERE, Json, ProjectDir, show_json

__all__ = ["keys_app"]

keys_app = typer.Typer(help="API keys: create, list, revoke.", no_args_is_help=True)


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Option(help="What the key is for, such as web.")],
    scope: Annotated[list[str], typer.Option(help="decide, outcomes, read or admin; repeatable.")],
    project: ProjectDir = HERE,
    requests_per_minute: Annotated[
        int | None, typer.Option(help="How often it may be used; no limit if not given.")
    ] = None,
    json_: Json = False,
) -> None:
    """Make an API key; its secret is shown once and kept nowhere."""
    from nextbest.project import Project
    from nextbest.serve import auth, runtime

    store = runtime.open_store(Project.open(project).root)
    try:
        key, token = auth.create_key(store, name, scope, requests_per_minute)
    finally:
        store.close()
    if json_:
        show_json({
            "key_id": key.key_id, "name": key.name, "scopes": list(key.scopes),
            "requests_per_minute": key.requests_per_minute, "token": token,
        })  # fmt: skip
        return
    print(f"{token}\nThis is shown once. Send it as `Authorization: Bearer …` or `X-API-Key: …`.")


@keys_app.command("list")
def keys_list(project: ProjectDir = HERE, json_: Json = False) -> None:
    """List API keys, without their secrets."""
    from nextbest.project import Project
    from nextbest.serve import auth, runtime

    store = runtime.open_store(Project.open(project).root)
    try:
        keys = auth.list_keys(store)
    finally:
        store.close()
    rows: list[dict[str, Any]] = [
        {
            "key_id": k.key_id, "name": k.name, "scopes": list(k.scopes),
            "created_at": k.created_at.isoformat(),
            "revoked_at": k.revoked_at.isoformat() if k.revoked_at else None,
            "last_used_at": k.last_used_at.isoformat() if k.last_used_at else None,
            "requests_per_minute": k.requests_per_minute,
        }
        for k in keys
    ]  # fmt: skip
    if json_:
        show_json({"keys": rows})
        return
    for row in rows:
        state = f"revoked {row['revoked_at']}" if row["revoked_at"] else "valid"
        used = f"last used {row['last_used_at']}" if row["last_used_at"] else "never used"
        limit = row["requests_per_minute"]
        often = f"{limit} a minute" if limit else "no limit"
        scopes = ",".join(row["scopes"])
        print(f"{row['key_id']}  {row['name']}  {scopes}  {often}  {state}  {used}")
    if not rows:
        print("No keys yet. Make one with `nextbest keys create --scope decide --name web`.")


@keys_app.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key.")],
    project: ProjectDir = HERE,
    json_: Json = False,
) -> None:
    """Make a key useless from now on."""
    from nextbest.project import Project
    from nextbest.serve import auth, runtime

    store = runtime.open_store(Project.open(project).root)
    try:
        auth.revoke_key(store, key_id)
    finally:
        store.close()
    if json_:
        show_json({"key_id": key_id, "revoked": True})
        return
    print(f"Key {key_id} is revoked.")
