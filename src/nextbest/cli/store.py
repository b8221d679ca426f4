"""`nextbest audit` and `nextbest customers`: what the store remembers, and what it must forget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextbest.cli.options import HERE, Json, ProjectDir, show_json

if TYPE_CHECKING:
    from nextbest.serve.store import Store

audit_app = typer.Typer(help="Audit trail: list, verify.", no_args_is_help=True)
customers_app = typer.Typer(help="People: export, erase.", no_args_is_help=True)

CustomerId = Annotated[str, typer.Argument(help="Id of the customer.")]


@contextmanager
def _store(project: Path) -> Iterator[tuple[Path, Store]]:
    from nextbest.project import Project
    from nextbest.serve.runtime import open_store

    root = Project.open(project).root
    store = open_store(root)
    try:
        yield root, store
    finally:
        store.close()


@audit_app.command("list")
def audit_list(project: ProjectDir = HERE, json_: Json = False) -> None:
    """List who changed models, policy, catalogue and keys, and who erased or exported people."""
    with _store(project) as (_, store):
        entries = [entry.to_dict() for entry in store.audit_entries()]
    if json_:
        show_json({"entries": entries})
        return
    for entry in entries:
        said = ", ".join(f"{name} {value}" for name, value in entry["detail"].items())
        print(
            f"{entry['number']}  {entry['at']}  {entry['actor']}  {entry['action']}  "
            f"{entry['subject']}  {said}".rstrip()
        )
    if not entries:
        print("Nothing has been changed yet.")


@audit_app.command("verify")
def audit_verify(
    project: ProjectDir = HERE,
    head: Annotated[
        str | None, typer.Option(help="Hash of an entry, noted earlier, that must still be there.")
    ] = None,
    json_: Json = False,
) -> None:
    """Say whether the audit trail is as it was written, or which entry is not."""
    from nextbest.serve.audit import verify

    with _store(project) as (_, store):
        verdict = verify(store.audit_entries(), head)
    if json_:
        show_json(verdict.to_dict())
    elif verdict.problem is None:
        print(f"{verdict.entries} entries, each follows the one before.")
        print(f"Head: {verdict.number} {verdict.head}")
        print("Keep it elsewhere: `nextbest audit verify --head` then shows a trail cut short.")
    else:
        print(f"The audit trail was tampered with: {verdict.problem}.")
        print(f"Whole up to entry {verdict.number}, {verdict.head}.")
    if verdict.problem is not None:
        raise typer.Exit(1)


@customers_app.command("export")
def customers_export(customer_id: CustomerId, project: ProjectDir = HERE) -> None:
    """Print all that is known of a person as one JSON object."""
    from nextbest.errors import NotFoundError
    from nextbest.serve import person
    from nextbest.serve.audit import local_actor
    from nextbest.serve.runtime import load_state

    with _store(project) as (root, store):
        state = load_state(root)
        now = state.moment(lambda: datetime.now(UTC))
        found = person.export(root, state, store, customer_id, local_actor(), now)
    if found is None:
        raise NotFoundError("customers", "nothing is known of this customer", action="Check the id")
    show_json(found)


@customers_app.command("erase")
def customers_erase(
    customer_id: CustomerId, project: ProjectDir = HERE, json_: Json = False
) -> None:
    """Remove all that the store holds of a person; the profile is served no more."""
    from nextbest.serve import person
    from nextbest.serve.audit import local_actor

    with _store(project) as (_, store):
        done: dict[str, Any] = person.erase(store, customer_id, local_actor())
    if json_:
        show_json(done)
        return
    removed = ", ".join(f"{count} {name}" for name, count in done["removed"].items())
    print(f"Removed: {removed}. Entry {done['audit']['number']} of the audit trail.")
    if not done["overwritten"]:
        print("The bytes are not overwritten yet: a server reads them, or PostgreSQL will VACUUM.")
    print("Remove the person from your own tables too, then run `nextbest refresh` twice.")
