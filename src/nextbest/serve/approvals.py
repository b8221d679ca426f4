"""What a policy has to pass before it goes live, and the records that it did.

A record belongs to one policy with one catalogue, by the hashes of their content: whoever edits
either has it judged again. A new bundle needs no new approval; its report may be made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import uuid4

from nextbest.decide.offers import Catalogue
from nextbest.decide.policy import Policy
from nextbest.errors import Fault, GateRefusal, StoreError
from nextbest.serve.audit import Change
from nextbest.serve.store import Store

__all__ = ["Approval", "Kind", "find", "folder", "keep", "note", "require_approved", "required_of"]

Kind = Literal["bias", "evaluation"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# What makes the record of each kind.
_RUN: Mapping[Kind, str] = {
    "bias": "nextbest bias",
    "evaluation": "nextbest evaluate --policy serving/policy.toml",
}


@dataclass(frozen=True)
class Approval:
    """What one examination of a policy came to.

    Attributes
    ----------
    kind : which examination.
    policy, catalogue : content hashes of what was examined.
    passed : whether it may go live, as far as this examination goes.
    said : the verdict in one sentence.
    numbers : what the verdict rests on, as plain JSON types.
    at : when (aware UTC).
    """

    kind: Kind
    policy: str
    catalogue: str
    passed: bool
    said: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


def folder(project_dir: Path) -> Path:
    """Return where a project keeps its approvals."""
    return project_dir / ".nextbest" / "approvals"


def required_of(policy: Policy) -> tuple[Kind, ...]:
    """Return what a policy has to pass before it goes live."""
    tables = policy.tables
    required: dict[Kind, bool] = {
        "bias": tables.sensitive.must_pass(), "evaluation": tables.gates.must_pass(),
    }  # fmt: skip
    return tuple(kind for kind, is_required in required.items() if is_required)


def keep(project_dir: Path, approval: Approval) -> Path:
    """Write a record in place of the one before it of the same kind, and return its file.

    Raises
    ------
    StoreError: it cannot be written.
    """
    path = _file(project_dir, approval.kind, approval.policy, approval.catalogue)
    draft = path.with_name(f".{path.name}-{uuid4().hex}")
    content = {**asdict(approval), "at": approval.at.astimezone(UTC).isoformat()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        got = error.strerror or str(error)
        raise StoreError(str(path), "the approval cannot be written", got=got) from None
    return path


def note(store: Store, approval: Approval, actor: str) -> None:
    """Write into the audit trail that a policy was judged, and how.

    Raises
    ------
    StoreError: it cannot be written.
    """
    detail = {
        "kind": approval.kind,
        "catalogue": approval.catalogue,
        "passed": approval.passed,
        "said": approval.said,
        "forced": approval.numbers.get("forced"),
    }
    store.audit(Change(actor, "judge", f"policy {approval.policy}", detail))


def find(project_dir: Path, kind: Kind, catalogue: Catalogue, policy: Policy) -> Approval | None:
    """Return the record of one kind on a policy with a catalogue; None where there is none.

    Raises
    ------
    GateRefusal: the record is damaged, or about something else than its name says.
    """
    path = _file(project_dir, kind, policy.content_hash, catalogue.content_hash)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw["at"] = datetime.fromisoformat(raw["at"])
        found = Approval(**raw)
        about = (found.kind, found.policy, found.catalogue)
        if about != (kind, policy.content_hash, catalogue.content_hash):
            raise ValueError("it is about something else")
        if not isinstance(found.passed, bool):
            raise ValueError("it does not say whether it passed")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GateRefusal(
            str(path), "the approval cannot be read", got=str(error)[:80],
            action=f"Run `{_RUN[kind]}` to make it again.",
        ) from None  # fmt: skip
    return found


def require_approved(project_dir: Path, catalogue: Catalogue, policy: Policy) -> None:
    """Refuse a policy that has not passed everything that it has to pass.

    Raises
    ------
    GateRefusal: an examination is missing or was not passed; all of them at once.
    """
    faults: list[Fault] = []
    hashes = f"policy {policy.content_hash[:16]} with catalogue {catalogue.content_hash[:16]}"
    for kind in required_of(policy):
        run = f"Run `{_RUN[kind]}`"
        try:
            found = find(project_dir, kind, catalogue, policy)
        except GateRefusal as damaged:
            faults += damaged.faults
            continue
        if found is None:
            problem, action = f"{hashes} has no approval of kind {kind}", f"{run} to examine it."
            faults.append(Fault(policy.where, problem, "examined before it goes live", "", action))
        elif not found.passed:
            problem = f"{hashes} did not pass its examination of kind {kind}"
            action = f"Change the policy or the catalogue. {run} again."
            faults.append(Fault(policy.where, problem, "passed", found.said.rstrip("."), action))
    if faults:
        raise GateRefusal(faults=faults)


def _file(project_dir: Path, kind: Kind, policy: str, catalogue: str) -> Path:
    return folder(project_dir) / f"{policy[:16]}-{catalogue[:16]}-{kind}.json"
