"""From profiles to what a decision reads: columns, propensities and contact history."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from functools import cached_property
from itertools import chain
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nextbest.data.profiles import Profiles
from nextbest.decide.contact import ContactHistory, Kind
from nextbest.decide.frame import Audience, Columns
from nextbest.decide.rules import Column, ColumnType
from nextbest.decide.words import plain
from nextbest.learn.scorer import FoldedOffers
from nextbest.serve.bundle import Bundle
from nextbest.serve.live import Heard, News, Overlay
from nextbest.serve.records import Contacts, Erased, Events, Outcomes, Seen
from nextbest.serve.store import Store

__all__ = ["ANSWERS", "Past", "Shaper", "known_columns", "past_of"]

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
_EPOCH = datetime(1970, 1, 1)

# What an outcome means to the contact policy; the others are neither yes nor no.
_KINDS: Mapping[str, Kind] = {
    "response": "acceptance",
    "conversion": "acceptance",
    "purchase": "purchase",
    "refusal": "refusal",
    "unsubscribe": "refusal",
    "complaint": "refusal",
}
ANSWERS = tuple(name for name, kind in _KINDS.items() if kind == "acceptance")


def _types(profiles: Profiles) -> dict[str, ColumnType]:
    booleans = {feature.name for feature in profiles.features if feature.dtype == "boolean"}
    names = (*profiles.columns, *profiles.offer_columns, *profiles.pair_columns)
    return {
        name: "string"
        if name in profiles.categories
        else "boolean"
        if name in booleans
        else "number"
        for name in names
    }


def known_columns(bundle: Bundle) -> dict[str, Column]:
    """Return the columns that rules may name, for `nextbest.decide.binding.bind`."""
    profiles, types = bundle.profiles, _types(bundle.profiles)
    return {
        **{name: Column(types[name], "customer") for name in profiles.columns},
        **{name: Column(types[name], "pair") for name in profiles.pair_columns},
        **{name: Column(types[name], "offer") for name in profiles.offer_columns},
    }


@dataclass(frozen=True)
class Past:
    """What the store knew, at one moment, of contacts with some customers and of their answers.

    ``events`` are those since the last refresh, where profiles follow them; ``moment`` is from
    before they were read, by the store.
    """

    contacts: Contacts = field(default_factory=Contacts)
    outcomes: Outcomes = field(default_factory=Outcomes)
    events: Events = field(default_factory=Events)
    moment: int | None = None

    def rows(self, customer_ids: Sequence[str]) -> Seen:
        """How many contacts and outcomes there were of each customer, for `record_decisions`."""
        found = dict.fromkeys(customer_ids, 0)
        for name in chain(self.contacts.customer_ids, self.outcomes.customer_ids):
            if name in found:
                found[name] += 1
        return Seen(found, self.moment)

    def without(self, decision_ids: Collection[str]) -> Past:
        """The same without some decisions and what came of them."""
        own = frozenset(decision_ids)
        return Past(_without(self.contacts, own), _without(self.outcomes, own), self.events)

    def joined(self, told: Past) -> Past:
        """The same with what the warehouse tells; what both know of a decision counts once.

        A contact is the same where its decision is; an answer where it says yes, or no, to the
        same decision. Without a decision_id nobody can tell, and both count.
        """
        own, others = self.outcomes, told.outcomes
        made = set(self.contacts.decision_ids)
        said = {(d, _KINDS.get(t)) for d, t in zip(own.decision_ids, own.types, strict=True)}
        new = [i for i, d in enumerate(told.contacts.decision_ids) if not d or d not in made]
        answers = zip(others.decision_ids, others.types, strict=True)
        more = [i for i, (d, t) in enumerate(answers) if not d or (d, _KINDS.get(t)) not in said]
        return replace(
            self,
            contacts=_both(self.contacts, _some(told.contacts, new)),
            outcomes=_both(own, _some(others, more)),
        )

    def heard(self) -> Heard:
        """Return what happened as rows of the data's tables.

        A response is an outcome that says yes to an offer that we had made: one to anything else
        the data contract would set aside.
        """
        contacts, outcomes, events = self.contacts, self.outcomes, self.events
        first: dict[tuple[str, str | None], datetime] = {}
        made = zip(contacts.customer_ids, contacts.offer_ids, contacts.at, strict=True)
        for customer_id, offer_id, at in made:
            first[customer_id, offer_id] = min(at, first.get((customer_id, offer_id), at))
        said = zip(
            outcomes.customer_ids, outcomes.at, outcomes.offer_ids, outcomes.types, strict=True
        )
        answers = [
            (customer_id, at, str(offer_id))
            for customer_id, at, offer_id, name in said
            if name in ANSWERS and first.get((customer_id, offer_id), datetime.max) <= at
        ]
        who, when, what = zip(*answers, strict=True) if answers else ((), (), ())
        return {
            "events": (events.customer_ids, events.at, events.types),
            "contacts": (contacts.customer_ids, contacts.at, contacts.offer_ids),
            "responses": (who, when, what),
        }

    def history(
        self, customer_ids: Sequence[str], offer_ids: Sequence[str] | Mapping[str, int]
    ) -> ContactHistory:
        """As the contact policy reads it: outcomes that say neither yes nor no are left out.

        ``offer_ids`` as `ContactHistory.build` takes them.
        """
        contacts, outcomes = self.contacts, self.outcomes
        told = [i for i, name in enumerate(outcomes.types) if name in _KINDS]
        if not contacts.at and not told:
            return ContactHistory.empty()
        return ContactHistory.build(
            customer_ids,
            offer_ids,
            customer_id=[*contacts.customer_ids, *(outcomes.customer_ids[i] for i in told)],
            offer_id=[*contacts.offer_ids, *(outcomes.offer_ids[i] for i in told)],
            channel=[*contacts.channels, *(outcomes.channels[i] for i in told)],
            time=_stamps([*contacts.at, *(outcomes.at[i] for i in told)]),
            kind=["contact"] * len(contacts.at) + [_KINDS[outcomes.types[i]] for i in told],
        )


def _stamps(moments: Sequence[datetime]) -> NDArray[np.datetime64]:
    """Moments (naive UTC) as NumPy holds them; it takes five times as long to convert them."""
    since = [moment - _EPOCH for moment in moments]
    ticks = [(d.days * 86_400 + d.seconds) * 1_000_000 + d.microseconds for d in since]
    return np.array(ticks, dtype=np.int64).view("datetime64[us]")


Told = TypeVar("Told", Contacts, Outcomes)


def _without(told: Told, decision_ids: frozenset[str]) -> Told:
    if not decision_ids.intersection(told.decision_ids):
        return told
    kept = [i for i, decision_id in enumerate(told.decision_ids) if decision_id not in decision_ids]
    return _some(told, kept)


def _some(told: Told, kept: Sequence[int]) -> Told:
    columns = {f.name: getattr(told, f.name) for f in fields(told)}
    return type(told)(**{name: tuple(column[i] for i in kept) for name, column in columns.items()})


def _both(one: Told, other: Told) -> Told:
    names = [f.name for f in fields(one)]
    return type(one)(**{name: getattr(one, name) + getattr(other, name) for name in names})


def past_of(
    store: Store | None, customer_ids: Sequence[str], events_since: datetime | None = None
) -> Past:
    """Return what the store knows of these customers; without a store nothing has happened.

    ``events_since`` is the moment from which on events count; None where none do.
    """
    return Past() if store is None else Past(*store.past(customer_ids, events_since))


@dataclass(frozen=True)
class Shaper:
    """Shapes a bundle's profiles for the offers of one catalogue, in the catalogue's order.

    An offer that the profiles do not know (it was added since the last refresh) has unknown
    features and an unknown propensity, so the engine leaves it out and says so. Who was erased is a
    stranger, although the bundle may still hold the profile.
    """

    bundle: Bundle
    offer_ids: tuple[str, ...]
    erased: Erased = field(default_factory=Erased)

    @cached_property
    def _places(self) -> Rows:
        """Position in the profiles of each offer; -1 where they do not know it."""
        at = {offer_id: i for i, offer_id in enumerate(self.bundle.profiles.offer_ids)}
        return np.array([at.get(offer_id, -1) for offer_id in self.offer_ids], dtype=np.intp)

    @cached_property
    def _offers(self) -> Array:
        """Offer features (m, k_o), NaN where unknown."""
        return _gather(self.bundle.profiles.offer_matrix, self._places)

    @cached_property
    def _held(self) -> Rows:
        """Which of the catalogue's offers the profiles know."""
        return np.flatnonzero(self._places >= 0)

    @cached_property
    def _in_order(self) -> bool:
        """Whether the catalogue's offers are those of the profiles, in their order."""
        return self.offer_ids == self.bundle.profiles.offer_ids

    @cached_property
    def _folded(self) -> FoldedOffers:
        """What scoring can do once for these offers."""
        return self.bundle.offer_scorer.fold(self._offers[self._held])

    @cached_property
    def _offer_columns(self) -> dict[str, NDArray[Any]]:
        names = self.bundle.profiles.offer_columns
        return {name: self._decoded(name, self._offers[:, j]) for j, name in enumerate(names)}

    @cached_property
    def _vocabularies(self) -> dict[str, NDArray[np.object_]]:
        """Values of the columns that hold codes, with None at the end for unknown."""
        found: dict[str, Sequence[Any]] = dict(self.bundle.profiles.categories)
        for name, kind in _types(self.bundle.profiles).items():
            if kind == "boolean":
                found[name] = (False, True)
        return {name: np.array([*values, None], dtype=object) for name, values in found.items()}

    @cached_property
    def _versions(self) -> dict[str, Any]:
        return {
            "models": self.bundle.model_versions,
            "bundle": self.bundle.id,
            "profiles": self.bundle.profiles.version,
        }

    def rows(self, customer_ids: Sequence[str]) -> Rows:
        """Return the profile row of each customer; -1 for strangers."""
        rows = self._found(customer_ids)
        if self.erased.hashes:
            rows[[customer_id in self.erased for customer_id in customer_ids]] = -1
        return rows

    def _found(self, customer_ids: Sequence[str]) -> Rows:
        """Return the row of each customer in the bundle; -1 where it has none."""
        profiles = self.bundle.profiles
        if len(customer_ids) == 1:
            row = profiles.index(customer_ids[0])
            return np.array([-1 if row is None else row], dtype=np.intp)
        if not len(profiles):
            return np.full(len(customer_ids), -1, dtype=np.intp)
        held = profiles.customer_ids
        names = [customer_id.encode() for customer_id in customer_ids]
        # Of the type of those that are held, which NumPy would otherwise copy to compare them.
        wanted = np.array(names, dtype=held.dtype)
        at = held.searchsorted(wanted)
        found = held.take(at, mode="clip") == wanted
        if max(map(len, names), default=0) > held.dtype.itemsize:  # it was cut off
            found &= [len(name) <= held.dtype.itemsize for name in names]
        at[~found] = -1
        return at

    def warehouse(self, customer_ids: Sequence[str]) -> Past:
        """Return what the warehouse knew of these customers at the last refresh."""
        held = self.bundle.contacts
        return Past() if held is None else Past(*held.told(customer_ids, self.rows(customer_ids)))

    def told(self, customer_id: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the contacts and responses of one customer that came with the bundle, as JSON."""
        past = self.warehouse([customer_id])
        contacts, answers = (
            [
                dict(zip(vars(told), event, strict=True))
                for event in zip(*vars(told).values(), strict=True)
            ]
            for told in (past.contacts, past.outcomes)
        )
        return contacts, answers

    @cached_property
    def overlay(self) -> Overlay:
        """What of the profiles follows what happens after the refresh."""
        return Overlay(self.bundle)

    def news(self, customer_ids: Sequence[str], past: Past, now: datetime) -> News | None:
        """Return live features as of now of those who did something since the refresh.

        ``past`` is what the store knows, without what the warehouse tells: the profiles hold that.
        """
        happened = (*past.contacts.at, *past.outcomes.at, *past.events.at)
        if not (happened and self.overlay.concerns(happened, now)):
            return None
        return self.overlay.news(self.rows(customer_ids), customer_ids, past.heard(), now)

    def audience(
        self, customer_ids: Sequence[str], contacts: ContactHistory, news: News | None = None
    ) -> Audience:
        """Return these customers as the engine reads them; strangers are marked unknown.

        With news, live features and the scores that depend on them are those of the moment.
        """
        profiles = self.bundle.profiles
        rows = self.rows(customer_ids)
        known = rows >= 0
        customers, live = self._current(customer_ids, rows, news)
        seen = None if known.all() else known.nonzero()[0]
        pairs = self._pairs(rows, seen)
        return Audience(
            customer_ids=customer_ids,
            known=known,
            columns=Columns(profiles.columns, customers, self._decoded),
            pair_columns=Columns(profiles.pair_columns, pairs, self._decoded),
            propensity=self._propensity(customers, pairs, seen),
            offer_columns=self._offer_columns,
            contacts=contacts,
            as_of=self.bundle.as_of,
            versions=self._versions,
            live=live,
        )

    def profile(
        self, customer_id: str, news: News | None = None
    ) -> tuple[dict[str, Any], Mapping[str, Any] | None] | None:
        """Return every feature and score of a customer (None unknown), or None for a stranger.

        With news, also what of it changed since the refresh (`Overlay.apply`).
        """
        rows = self.rows([customer_id])
        if rows[0] < 0:
            return None
        values, live = self._current([customer_id], rows, news)
        profile = {
            name: plain(self._decoded(name, values[:, j])[0])
            for j, name in enumerate(self.bundle.profiles.columns)
        }
        return profile, live.get(customer_id)

    def column(self, name: str) -> NDArray[Any]:
        """Return one customer column of every profile, as rules read it; the erased have none."""
        at = self.bundle.profiles.columns.index(name)
        rows = self.rows(self.bundle.profiles.ids())
        return self._decoded(name, _gather(self.bundle.profiles.matrix[:, at : at + 1], rows)[:, 0])

    def _current(
        self, customer_ids: Sequence[str], rows: Rows, news: News | None
    ) -> tuple[Array, dict[str, dict[str, Any]]]:
        """Return rows of the profiles with the news laid over them, and what that changed."""
        customers = _gather(self.bundle.profiles.matrix, rows)
        live = {} if news is None else self.overlay.apply(customers, customer_ids, news)
        return customers, live

    def contributions(
        self, customer_id: str, offer_id: str, top: int = 5, news: News | None = None
    ) -> list[dict[str, Any]]:
        """Return what moved a customer's propensity for an offer most, strongest first.

        Customer and offer must be known to the profiles. ``effect`` is in log-odds before
        calibration, against the average. ``news`` is about this customer alone.
        """
        (row,) = rows = self.rows([customer_id])
        customers, _live = self._current([customer_id], rows, news)
        place = self._places[self.offer_ids.index(offer_id)]
        profiles = self.bundle.profiles
        found = self.bundle.offer_scorer.contributions(
            customers[0], profiles.offer_matrix[place], profiles.pairs[row, place], top
        )
        return [vars(one) for one in found]

    def _pairs(self, rows: Rows, seen: Rows | None) -> Array:
        """Return the pair columns (n, m, k_p) of customers in some rows, NaN where unknown.

        ``seen`` are the positions of those who are known; None where all are.
        """
        held = self.bundle.profiles.pairs
        if seen is None and self._in_order:
            return held.take(rows, axis=0)
        pairs = np.full((len(rows), len(self.offer_ids), held.shape[2]), np.nan)
        if seen is None:
            seen = np.arange(len(rows))
        if seen.size and self._held.size:
            places = self._places[self._held]
            pairs[seen[:, None], self._held] = held[rows[seen][:, None], places]
        return pairs

    def _propensity(self, customers: Array, pairs: Array, seen: Rows | None) -> Array:
        """Return the (n, m) propensities, NaN where customer (not ``seen``) or offer is unknown."""
        held, scorer = self._held, self.bundle.offer_scorer
        if seen is None and held.size == len(self.offer_ids):
            return scorer.propensity(customers, self._folded, pairs)
        propensity = np.full(pairs.shape[:2], np.nan)
        if seen is None:
            seen = np.arange(len(customers))
        if seen.size and held.size:
            cells = seen[:, None], held
            propensity[cells] = scorer.propensity(customers[seen], self._folded, pairs[cells])
        return propensity

    def _decoded(self, name: str, values: Array) -> NDArray[Any]:
        if name not in self._vocabularies:
            return values
        return self._vocabularies[name][np.where(np.isnan(values), -1, values).astype(np.intp)]


def _gather(matrix: Array, rows: Rows) -> Array:
    """Return the rows of a matrix, all unknown where the row is -1."""
    if rows.size and rows.min() >= 0:
        return matrix.take(rows, axis=0)
    gathered = np.full((len(rows), matrix.shape[1]), np.nan)
    gathered[rows >= 0] = matrix[rows[rows >= 0]]
    return gathered
