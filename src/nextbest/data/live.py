"""Live features: what single rows say after the last refresh, without the warehouse.

A live feature is declared once, as a `Live` measure. `nextbest.data.features.follow` makes the
batch expression of it; `updated` here gives the same number from the value at the refresh, the
customer's rows shortly before it, and the rows that came after it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nextbest.errors import ArtifactError, ConfigError

__all__ = ["KIND_COLUMNS", "Live", "RecentRows", "Window", "updated", "window"]

FORMAT = 1
MANIFEST = "manifest.json"
KIND_COLUMNS: Mapping[str, str] = {
    "events": "event_type",
    "contacts": "offer_id",
    "responses": "offer_id",
}
"""Tables whose rows reach a server as they happen, and the column that holds their kind."""

Array = NDArray[np.float64]
Codes = NDArray[np.int32]
Moments = NDArray[np.datetime64]
_MICROSECONDS = 1e6
_SECONDS_PER_DAY = 86_400.0


@dataclass(frozen=True)
class Live:
    """A measure of a customer's rows that can be brought up to date row by row.

    Parameters
    ----------
    measure : ``count`` (how many rows), ``distinct`` (how many kinds of rows), ``days_since`` (age
        of the last row in days; unknown without any) or ``left_behind`` (1 where the last row of
        the kind is not followed by one of the kind ``until``, else 0).
    of : kind of the rows that count, an event type or the offer; None for every row.
    days : rows older than this do not count; None for no limit.
    until : the kind that ends a ``left_behind``.

    Raises
    ------
    ConfigError : the parts do not fit the measure.
    """

    measure: Literal["count", "distinct", "days_since", "left_behind"]
    of: str | None = None
    days: float | None = None
    until: str | None = None

    def __post_init__(self) -> None:
        left_behind, distinct = self.measure == "left_behind", self.measure == "distinct"
        fault = None
        if self.measure not in ("count", "distinct", "days_since", "left_behind"):
            fault = "one of count, distinct, days_since, left_behind"
        elif left_behind != (self.until is not None) or (left_behind and self.of is None):
            fault = "of and until for left_behind, and no until for the others"
        elif distinct and self.of is not None:
            fault = "no of for distinct, which tells all kinds apart"
        elif (left_behind and self.days is None) or (
            self.measure == "days_since" and self.days is not None
        ):
            fault = "days for left_behind, none for days_since"
        elif self.days is not None and not self.days > 0:
            fault = "days above 0"
        if fault is not None:
            raise ConfigError(
                "a live feature", "its measure makes no sense", expected=fault, got=repr(self)
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of rows that it tells apart."""
        return tuple(kind for kind in (self.of, self.until) if kind is not None)

    @property
    def fill(self) -> float | None:
        """The value of a customer without any row."""
        return None if self.measure == "days_since" else 0.0


@dataclass(frozen=True)
class Window:
    """What has to be kept of a table's rows, so that measures of it can be brought up to date.

    ``days`` is how far back they look, None without an end; ``kinds`` are those they tell apart, in
    order of their codes. A row of another kind has the code -1; where every kind counts
    (``is_open``) it has a code of its own.
    """

    days: float | None
    kinds: tuple[str, ...]
    is_open: bool = False

    def codes(self, kinds: Sequence[str]) -> Codes:
        """Return the (r,) codes of some rows' kinds."""
        code = {kind: i for i, kind in enumerate(self.kinds)}
        if self.is_open:
            return np.array([code.setdefault(kind, len(code)) for kind in kinds], dtype=np.int32)
        return np.array([code.get(kind, -1) for kind in kinds], dtype=np.int32)

    def holding(self, kinds: Sequence[str]) -> Window:
        """Return the window with codes for all the kinds of some rows, if every kind counts."""
        return replace(self, kinds=tuple(sorted({*self.kinds, *kinds}))) if self.is_open else self


def window(lives: Sequence[Live]) -> Window:
    """Return what several measures of one table need."""
    distinct = [live for live in lives if live.measure == "distinct"]
    endless = any(live.days is None for live in distinct)
    days = max((live.days for live in lives if live.days is not None), default=0.0)
    kinds = {kind for live in lives for kind in live.kinds}
    return Window(None if endless else days, tuple(sorted(kinds)), bool(distinct))


@dataclass(frozen=True)
class RecentRows:
    """One table's rows shortly before a refresh, r rows of n customers, oldest rows first.

    Attributes
    ----------
    starts : (n + 1,) where each customer's rows begin and end, by row of the profiles.
    at : (r,) datetime64[us], UTC.
    kind : (r,) codes into the window's kinds, -1 for others.
    """

    window: Window
    starts: NDArray[np.int64]
    at: Moments
    kind: Codes

    @classmethod
    def of(cls, found: Any, kept: Window, row_of: Mapping[str, int]) -> RecentRows:
        """Take up a table of `nextbest.data.recent.before`; ``row_of`` gives customers' rows."""
        customer = np.array([row_of[one] for one in found["customer_id"]], dtype=np.int64)
        at = np.asarray(found["at"], dtype="datetime64[us]")
        kinds = [str(kind) for kind in found["kind"]]
        kept = kept.holding(kinds)
        kind = kept.codes(kinds)
        order = np.lexsort((kind, at, customer))  # the same rows give the same bytes
        counts = np.bincount(customer, minlength=len(row_of))
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(kept, starts, at[order], kind[order])

    def take(
        self, rows: Sequence[int] | NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], Moments, Codes]:
        """Return some customers' rows: position of the customer in ``rows``, time and code."""
        begin, end = self.starts[np.asarray(rows)], self.starts[np.asarray(rows) + 1]
        each = [np.arange(b, e) for b, e in zip(begin.tolist(), end.tolist(), strict=True)]
        chosen = np.concatenate(each) if each else np.empty(0, dtype=np.intp)
        return np.repeat(np.arange(len(each)), end - begin), self.at[chosen], self.kind[chosen]

    def save(self, directory: Path) -> str:
        """Write the rows to a new directory and return the SHA-256 of its manifest."""
        directory.mkdir(parents=True)
        digests = {}
        for name in _ARRAYS:
            file = directory / f"{name}.npy"
            with file.open("wb") as handle:
                np.save(handle, np.ascontiguousarray(getattr(self, name)), allow_pickle=False)
            digests[name] = _sha256(file)
        manifest = {"format": FORMAT, "window": asdict(self.window), "sha256": digests}
        (directory / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
        return _sha256(directory / MANIFEST)

    @classmethod
    def open(cls, directory: Path) -> RecentRows:
        """Open rows, memory-mapped and read-only.

        Raises
        ------
        ArtifactError : a file is damaged or does not fit the manifest.
        """
        manifest = json.loads((directory / MANIFEST).read_text())
        arrays = {}
        for name in _ARRAYS:
            file = directory / f"{name}.npy"
            if manifest["format"] != FORMAT or _sha256(file) != manifest["sha256"][name]:
                raise ArtifactError(
                    f"live rows {directory.name}",
                    f"{file.name} is not the file that was written",
                    expected=f"format {FORMAT} with the manifest's SHA-256",
                    action="Run `nextbest refresh` to build it again.",
                )
            # A view: looking at a few rows of a memory map itself takes several times longer.
            arrays[name] = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
        kept = manifest["window"]
        return cls(Window(**{**kept, "kinds": tuple(kept["kinds"])}), **arrays)


_ARRAYS = ("starts", "at", "kind")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def updated(
    lives: Sequence[Live],
    before: Array,
    recent: RecentRows,
    rows: NDArray[np.intp],
    since: tuple[NDArray[np.intp], Moments, Codes],
    as_of: datetime,
    now: datetime,
) -> Array:
    """Return k measures of c customers as of now: what the batch expression would give then.

    Parameters
    ----------
    lives : the k measures, all of one table.
    before : (c, k) their values as of the refresh, NaN unknown.
    recent : the table's rows before the refresh; ``rows`` (c,) are the customers' rows in it.
    since : rows after it as `RecentRows.take` gives them: positions among the c customers, times
        in [``as_of``, ``now``), codes.
    as_of, now : the moments of the refresh and of the answer, naive UTC.
    """
    held = recent.take(rows)
    customer = np.concatenate([held[0], since[0]])
    at, kind = np.concatenate([held[1], since[1]]), np.concatenate([held[2], since[2]])
    is_new = np.arange(len(customer)) >= len(held[0])
    moment = np.datetime64(now, "us")
    ages = (_seconds(moment) - _seconds(at)) / _SECONDS_PER_DAY
    code = {name: i for i, name in enumerate(recent.window.kinds)}

    def youngest(chosen: NDArray[np.bool_]) -> Array:
        """(c,) age of each customer's last row among those chosen, infinite where none is."""
        found = np.full(len(before), np.inf)
        np.minimum.at(found, customer[chosen], ages[chosen])
        return found

    values = np.empty(before.shape)
    for j, live in enumerate(lives):
        mine, days = _of(kind, code, live.of), np.inf if live.days is None else live.days
        if live.measure == "days_since":
            last = np.fmin(_aged(before[:, j], as_of, moment), youngest(mine & is_new))
            values[:, j] = np.where(np.isinf(last), np.nan, last)
        elif live.measure == "distinct":
            seen = np.unique(np.stack([customer, kind])[:, ages <= days], axis=1)
            values[:, j] = np.bincount(seen[0], minlength=len(before))
        elif live.measure == "left_behind":
            left, ended = youngest(mine), youngest(_of(kind, code, live.until))
            values[:, j] = (left <= days) & (left < ended)
        else:
            counts = mine & (is_new if live.days is None else ages <= days)
            earlier = before[:, j] if live.days is None else 0.0
            values[:, j] = earlier + np.bincount(customer[counts], minlength=len(before))
    return values


def _of(kind: Codes, code: Mapping[str, int], of: str | None) -> NDArray[np.bool_]:
    return np.full(len(kind), True) if of is None else kind == code[of]


def _seconds(at: Any) -> Any:
    """Seconds since 1970 as DuckDB's epoch() gives them, to the last bit."""
    return np.asarray(at).astype(np.int64) / _MICROSECONDS


def _aged(days: Array, as_of: datetime, moment: np.datetime64) -> Array:
    """Days since some moment as of now, from the days since it as of the refresh.

    The moment itself is computed first: it is known to the microsecond, and adding days to days
    would not give the bits of the batch expression.
    """
    known = np.isfinite(days)
    start = np.datetime64(as_of, "us").astype(np.int64)
    ago = np.rint(np.where(known, days, 0.0) * (_SECONDS_PER_DAY * _MICROSECONDS)).astype(np.int64)
    now = (_seconds(moment) - (start - ago) / _MICROSECONDS) / _SECONDS_PER_DAY
    return np.where(known, now, np.nan)
