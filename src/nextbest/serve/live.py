"""What happened since the last refresh, laid over the profiles that a decision reads.

Live features (`nextbest.data.live`) of customers about whom there is news are computed again as of
the decision, and so are the scores of models that read them. Nobody else costs anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextbest.data.feature import SCORE_GROUP
from nextbest.data.live import Live, RecentRows, updated
from nextbest.decide.frame import utc
from nextbest.decide.words import plain
from nextbest.errors import DataError
from nextbest.learn.scorer import LoadedModel
from nextbest.serve.bundle import Bundle
from nextbest.serve.records import naive_utc

__all__ = ["Heard", "News", "Overlay"]

Array = NDArray[np.float64]
Rows = NDArray[np.intp]


Heard = Mapping[str, tuple[Sequence[str], Sequence[datetime], Sequence[str]]]
"""By table, who did it, when (naive UTC), and the kind (`nextbest.data.live.KIND_COLUMNS`)."""


@dataclass(frozen=True)
class News:
    """Live features as of a decision, of c customers about whom there is news.

    Attributes
    ----------
    positions : (c,) their places among the customers asked about.
    columns, values : names of k live features and their (c, k) values.
    heard : for each customer how many rows came since the refresh, by table.
    """

    positions: Rows
    columns: tuple[str, ...]
    values: Array
    heard: tuple[Mapping[str, int], ...]

    @classmethod
    def of_record(cls, facts: Mapping[str, Any]) -> News:
        """Return what a record kept of one decision (`Overlay.apply`)."""
        features = facts["features"]
        values = [np.nan if is_now is None else is_now for _was, is_now in features.values()]
        row = np.array([values], dtype=np.float64)
        return cls(np.zeros(1, dtype=np.intp), tuple(features), row, (facts["heard"],))


@dataclass(frozen=True)
class _Source:
    """A table's live features: their names, places in the profiles and measures, and its rows."""

    table: str
    names: tuple[str, ...]
    places: Rows
    lives: tuple[Live, ...]
    recent: RecentRows


@dataclass(frozen=True)
class _Score:
    """A score of customers, its place in the profiles, and the model that gives it."""

    name: str
    place: int
    model: LoadedModel


@dataclass(frozen=True)
class Overlay:
    """What of a bundle's profiles follows what happens after its refresh."""

    bundle: Bundle

    @cached_property
    def _place(self) -> dict[str, int]:
        """Number of each of the profiles' columns."""
        return {name: i for i, name in enumerate(self.bundle.profiles.columns)}

    @cached_property
    def _sources(self) -> tuple[_Source, ...]:
        features, found = self.bundle.profiles.features, []
        for table, recent in self.bundle.recent.items():
            mine = [(f.name, f.live) for f in features if f.source == table and f.live]
            names, lives = zip(*mine, strict=True)
            places = np.array([self._place[name] for name in names], dtype=np.intp)
            found.append(_Source(table, names, places, lives, recent))
        return tuple(found)

    @cached_property
    def _scores(self) -> tuple[_Score, ...]:
        """What models say of customers, in the order of the profiles."""
        found: dict[str, _Score] = {}
        for feature in self.bundle.profiles.features:
            name = feature.source.removeprefix("model ")
            if feature.group == SCORE_GROUP and name in self.bundle.models:
                # Its first column is what a model says; the next ranks past value, which is not
                # live. A lifetime value has several columns, and no model of rows gives it.
                score = _Score(feature.name, self._place[feature.name], self.bundle.models[name])
                found.setdefault(name, score)
        return tuple(found.values())

    @cached_property
    def events_since(self) -> datetime | None:
        """From when on events can change a profile; None where none can."""
        return self.bundle.as_of if "events" in self.bundle.recent else None

    def concerns(self, moments: Iterable[datetime], now: datetime) -> bool:
        """Tell whether anything that happened at some moments (naive UTC) can be news."""
        if not self._sources:
            return False
        start, end = self._start, naive_utc(utc(now))
        return any(start <= at < end for at in moments)

    @cached_property
    def _start(self) -> datetime:
        """The refresh (naive UTC): what happened since can be news."""
        return naive_utc(self.bundle.as_of)

    def news(
        self, rows: Rows, customer_ids: Sequence[str], heard: Heard, now: datetime
    ) -> News | None:
        """Return live features of the customers who did something since; None where nobody did.

        Parameters
        ----------
        rows : (n,) rows of the customers in the profiles, -1 for strangers, of whom nothing can be
            said before the next refresh.
        heard : what the store knows of them. What happened before the refresh is the warehouse's to
            tell: it counts from the refresh on that has read it.
        now : the moment of the decision; what happens later, or at it, does not count.
        """
        start, end = self._start, naive_utc(utc(now))
        place = {c: i for i, c in enumerate(customer_ids) if rows[i] >= 0}
        since = {
            source.table: [
                (place[who], at, kind)
                for who, at, kind in zip(*heard[source.table], strict=True)
                if start <= at < end and who in place
            ]
            for source in self._sources
        }
        told = [source for source in self._sources if since[source.table]]
        touched = sorted({position for found in since.values() for position, _at, _kind in found})
        if not touched:
            return None
        positions = np.array(touched, dtype=np.intp)
        counts = {table: Counter(who for who, _, _ in found) for table, found in since.items()}
        return News(
            positions,
            tuple(name for source in told for name in source.names),
            np.hstack([self._values(s, rows, positions, since[s.table], end) for s in told]),
            tuple(
                {t: n[position] for t, n in counts.items() if n[position]} for position in touched
            ),
        )

    def _values(
        self,
        source: _Source,
        rows: Rows,
        positions: Rows,
        since: Sequence[tuple[int, datetime, str]],
        now: datetime,
    ) -> Array:
        """Return a table's live features of the customers at some positions, as of now.

        Of whom the table tells nothing new, they are as of the refresh.
        """
        values = self.bundle.profiles.matrix[rows[positions]][:, source.places]
        who, at, kinds = zip(*since, strict=True)
        each, own = np.unique(who, return_inverse=True)
        mine = np.searchsorted(positions, each)
        news = (own, np.array(at, dtype="datetime64[us]"), source.recent.window.codes(kinds))
        as_of = naive_utc(self.bundle.as_of)
        values[mine] = updated(
            source.lives, values[mine], source.recent, rows[each], news, as_of, now
        )
        return values

    def apply(
        self, customers: Array, customer_ids: Sequence[str], news: News
    ) -> dict[str, dict[str, Any]]:
        """Lay news over rows of the profiles, in place, and return what changed, by customer.

        JSON-able: ``heard`` says how much came since the refresh, ``features`` and ``scores`` what
        each was and is, and ``kept`` names the scores that should have changed but can only be
        computed at a refresh.
        """
        places = np.array([self._place[name] for name in news.columns], dtype=np.intp)
        facts: dict[str, dict[str, Any]] = {}
        for values, position, heard in zip(news.values, news.positions, news.heard, strict=True):
            row = customers[position]
            was = row[places].copy()
            moved = np.flatnonzero(~((was == values) | (np.isnan(was) & np.isnan(values))))
            row[places] = values
            changed = {news.columns[j]: [plain(was[j]), plain(values[j])] for j in moved}
            scores, kept = self._rescore(row, frozenset(changed))
            said = {"heard": dict(heard), "features": changed, "scores": scores}
            facts[customer_ids[position]] = {**said, **({"kept": kept} if kept else {})}
        return facts

    def _rescore(
        self, row: Array, changed: frozenset[str]
    ) -> tuple[dict[str, list[float | None]], list[str]]:
        """Score a customer's row again where a model reads what changed, in place."""
        scores: dict[str, list[float | None]] = {}
        kept = []
        for score in self._scores:
            was = row[score.place]
            # Of whom the model's label asks nothing, it still asks nothing.
            if np.isnan(was) or changed.isdisjoint(score.model.columns):
                continue
            found = self._score(score.model, row)
            if found is None:
                kept.append(score.name)
            elif found != was:
                row[score.place] = found
                scores[score.name] = [plain(was), plain(found)]
        return scores, kept

    def _score(self, model: LoadedModel, row: Array) -> float | None:
        """Return a model's score of a row of the profiles; None where it cannot be computed."""
        if model.kind == "clv":
            return None
        values: dict[str, Any] = {}
        for name in model.columns:
            if name not in self._place:
                return None
            value = row[self._place[name]]
            texts = self.bundle.profiles.categories.get(name)
            unknown = texts is not None and np.isnan(value)
            values[name] = [None if unknown else texts[int(value)] if texts else value]
        try:
            return float(model.score(values)[0])
        except DataError:
            return None
