"""Make a recorded decision again, hold it against the record, and say what differs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from nextbest.decide.contact import ContactHistory
from nextbest.decide.engine import Decisions
from nextbest.decide.inputs import redecide
from nextbest.decide.packed import profile_of
from nextbest.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    Fault,
    NextbestError,
    NotFoundError,
)
from nextbest.serve.archive import archived_catalogue, archived_policy
from nextbest.serve.audience import Shaper, known_columns
from nextbest.serve.bundle import Bundle, load_bundle
from nextbest.serve.live import News
from nextbest.serve.recording import answer_of, contributions_of, explained
from nextbest.serve.records import StoredDecision
from nextbest.serve.runtime import serving_dir
from nextbest.serve.store import Store

__all__ = ["Difference", "Replay", "replay", "trace_of"]

T = TypeVar("T")
_PARTS = ("answer", "selection", "inputs")


@dataclass(frozen=True)
class Difference:
    """One value that came out otherwise, and its path, such as ``answer.offers.0.rank``."""

    where: str
    stored: Any
    rebuilt: Any


@dataclass(frozen=True)
class Replay:
    """What making a decision again showed.

    Parameters
    ----------
    differences: between the record and the decision made again.
    missing: why it cannot be made again, in words; empty where it could.
    scores: in words, whether the models were run again or the record's scores were used.
    trace: every offer's fate, with what moved the propensities where the models are still there.
    """

    decision_id: str
    differences: tuple[Difference, ...] = ()
    missing: tuple[str, ...] = ()
    scores: str = ""
    trace: Mapping[str, Any] | None = None

    @property
    def verdict(self) -> Literal["identical", "differs", "cannot be replayed"]:
        """The result in a word or three."""
        if self.missing:
            return "cannot be replayed"
        return "differs" if self.differences else "identical"

    def to_dict(self) -> dict[str, Any]:
        """Return the replay as plain JSON types."""
        found = [vars(difference) for difference in self.differences]
        return {"verdict": self.verdict, **vars(self), "differences": found}


@dataclass(frozen=True)
class _Remade:
    """A decision made again from the record's inputs."""

    decisions: Decisions
    answer: dict[str, Any]
    selection: dict[str, Any]


def replay(project_dir: Path, store: Store, decision_id: str) -> Replay:
    """Make a recorded decision again and compare every value, bit for bit.

    Catalogue and policy come from the archive, everything else from the record. Where the bundle is
    still there, features and propensities are read and scored again, too.

    Raises
    ------
    NotFoundError: there is no decision of this id.
    """
    stored = store.decision(decision_id)
    if stored is None:
        erased_at = store.erased_decision(decision_id)
        if erased_at is not None:
            raise NotFoundError(
                f'decision "{decision_id}"',
                f"it was erased with everything about its customer on {erased_at:%Y-%m-%d}",
                action="See `nextbest audit list`; nothing of it is left to replay",
            )
        raise NotFoundError(
            f'decision "{decision_id}"',
            "the store does not hold it",
            action="Only recorded decisions can be replayed: those of the API, and batches with "
            "--record",
        )
    try:
        record = stored.record
        made = _remade(project_dir, record)
    except (DataError, NotFoundError) as error:
        return Replay(decision_id, missing=tuple(str(fault) for fault in error.faults))
    differences = [
        *_compare("record", *_filed(store, stored, made)),
        *_compare("answer", record["answer"], made.answer),
        *_compare("selection", record["selection"], made.selection),
        *_compare("request", *_asked(record)),
    ]
    bundle, said = _bundle(project_dir, record["inputs"])
    contributions: Mapping[str, Any] = record.get("contributions") or {}
    if bundle is not None:
        shaper = Shaper(bundle, made.decisions.catalogue.offer_ids)
        differences += _rescored(shaper, record["inputs"])
        if not differences:
            live = record["inputs"]["profile"].get("live")
            contributions = contributions_of(shaper, made.answer, live)
    trace = explained(made.decisions, 0, contributions)
    return Replay(decision_id, tuple(differences), (), said, trace)


def trace_of(project_dir: Path, record: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """Return the trace of a stored decision, made again; or None and what is missing for it."""
    try:
        made = _remade(project_dir, record)
    except NotFoundError as error:
        return None, str(error)
    return explained(made.decisions, 0, record.get("contributions") or {}), ""


def _remade(project_dir: Path, record: Mapping[str, Any]) -> _Remade:
    """Decide again from the record; NotFoundError names everything that is missing at once."""
    gone = "It was erased, or an older nextbest wrote the record"
    faults = [
        Fault("the record", f'it holds no "{part}"', action=gone)
        for part in _PARTS
        if not record.get(part)
    ]
    inputs = record.get("inputs") or {}
    hashes = {name: str(inputs.get(name)) for name in ("catalogue_hash", "policy_hash")}
    catalogue = policy = None
    if inputs:
        catalogue = _found(faults, archived_catalogue, project_dir, hashes["catalogue_hash"])
        policy = _found(faults, archived_policy, project_dir, hashes["policy_hash"])
    if faults or catalogue is None or policy is None:
        raise NotFoundError(faults=faults)
    try:
        decisions = redecide(inputs, catalogue, policy)
        said = record["answer"]
        # Why prices were ignored is about what lay in the store then: nothing that can be remade.
        again = answer_of(decisions, 0, list(said["scores"]), said.get("prices_ignored"))
        # As JSON holds them: whole numbers, texts and lists are then what the store gives back.
        answer, selection = (json.loads(json.dumps(one)) for one in (again, decisions.selection(0)))
    except ConfigError as error:
        what = f"catalogue or policy read what its inputs do not hold: {error}"
        raise NotFoundError("the record", what, action=gone) from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, NextbestError) as error:
        what = "its inputs are damaged or incomplete"
        got = f"{type(error).__name__}: {error}"
        raise NotFoundError("the record", what, got=got, action=gone) from None
    return _Remade(decisions, answer, selection)


def _found(
    faults: list[Fault], load: Callable[[Path, str], T], project_dir: Path, content_hash: str
) -> T | None:
    try:
        return load(project_dir, content_hash)
    except NotFoundError as error:
        faults += error.faults
        return None


def _bundle(project_dir: Path, inputs: Mapping[str, Any]) -> tuple[Bundle | None, str]:
    """The bundle that was decided with, or None, and what that means for the scores, in words."""
    bundle_id = str(inputs["profile"]["versions"]["bundle"])
    folder, taken = serving_dir(project_dir), "features and propensities were taken from the record"
    if not bundle_id.isalnum() or not (folder / bundle_id).is_dir():
        return None, f"bundle {bundle_id} was replaced and is gone; {taken}"
    try:
        bundle = load_bundle(folder, bundle_id)
        _ = bundle.offer_scorer
    except ArtifactError as error:
        return None, f"{error} Until then {taken}"
    return bundle, f"features and propensities were read and scored again from bundle {bundle_id}"


def _rescored(shaper: Shaper, inputs: Mapping[str, Any]) -> Iterator[Difference]:
    """What the models and profiles of the bundle say otherwise than the record."""
    stored = inputs["profile"]
    # Live features are inputs: what had been reported by then the store cannot tell any more.
    news = News.of_record(stored["live"]) if "live" in stored else None
    audience = shaper.audience([inputs["customer_id"]], ContactHistory.empty(), news)
    columns = known_columns(shaper.bundle)
    rebuilt = profile_of(audience, 0, columns, set(stored["types"]))
    yield from _compare("profile", stored, rebuilt)


def _filed(
    store: Store, stored: StoredDecision, made: _Remade
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Under what the store filed the decision, and what it logged as contacts."""
    _, contacts = store.chosen([stored.decision_id])[stored.decision_id]
    answer = made.answer
    return (
        {
            "decision_id": stored.decision_id,
            "customer_id": stored.customer_id,
            "contacts": list(contacts),
        },
        {
            "decision_id": answer["decision_id"],
            "customer_id": answer["customer_id"],
            "contacts": [offer["offer_id"] for offer in answer["offers"]],
        },
    )


def _asked(record: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the request and the inputs both state; a batch's request states none of it."""
    request, situation = record.get("request") or {}, record["inputs"]["situation"]
    both = [name for name in situation if name in request]
    return {name: request[name] for name in both}, {name: situation[name] for name in both}


def _compare(where: str, stored: Any, rebuilt: Any) -> Iterator[Difference]:
    if isinstance(stored, Mapping) and isinstance(rebuilt, Mapping):
        for name in dict.fromkeys([*stored, *rebuilt]):
            yield from _compare(f"{where}.{name}", stored.get(name), rebuilt.get(name))
    elif isinstance(stored, list) and isinstance(rebuilt, list) and len(stored) == len(rebuilt):
        for i, (one, other) in enumerate(zip(stored, rebuilt, strict=True)):
            yield from _compare(f"{where}.{i}", one, other)
    # JSON writes every bit of a number, also the sign of a zero.
    elif json.dumps(stored) != json.dumps(rebuilt):
        yield Difference(where, stored, rebuilt)
