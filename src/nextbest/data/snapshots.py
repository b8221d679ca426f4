"""Snapshots: features as of many moments beside their labels, and today's profiles.

Training rows and profiles come from the same `attach`, so a training row is what the profile job
would have produced on that day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import ibis
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nextbest.data.contract import History
from nextbest.data.features import (
    KEYS,
    Entity,
    Feature,
    FeatureGroup,
    Past,
    Unavailable,
    attach,
    available,
)
from nextbest.data.labels import Label
from nextbest.errors import DataError

NOT_FEATURES = ("customer_id", "offer_id", "as_of", "label_end", "label", "future_value")


@dataclass(frozen=True)
class Snapshot:
    """Rows to learn from: keys, ``label_end``, ``label`` and features.

    Attributes
    ----------
    frame : one row per labelled moment, sorted by ``as_of`` and keys.
    features : what each feature column means.
    left_out : how many labelled moments were left out, by reason.
    unavailable : feature groups that the data cannot feed.
    """

    frame: pd.DataFrame
    features: tuple[Feature, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    unavailable: tuple[Unavailable, ...] = ()

    @property
    def X(self) -> pd.DataFrame:
        """The feature columns."""
        return self.frame[[f.name for f in self.features]]


def build(
    history: History,
    label: Label,
    groups: Sequence[FeatureGroup],
    as_of: Sequence[datetime] = (),
) -> Snapshot:
    """Return labelled rows with features strictly before each row's ``as_of``.

    Parameters
    ----------
    history : the clean tables.
    label : what to predict; a response label brings its own moments (the contacts).
    groups : feature groups; those that the data cannot feed are reported, not used.
    as_of : moments to ask about, naive UTC.

    Raises
    ------
    DataError : no labelled moment is left.
    """
    examples = label.examples(history, as_of)
    usable, unavailable = available(groups, history.tables)
    frame = _to_pandas(examples.table)
    if frame.empty:
        raise DataError(
            "snapshot",
            f'no labelled rows for "{label.meaning}"',
            expected="at least one moment whose label window lies inside the data",
            got=", ".join(f"{n} {why}" for why, n in examples.left_out.items()) or "none",
            action="Move the as-of dates in training/training.toml, or bring more history.",
        )
    entities: tuple[Entity, ...] = (
        ("customer",) if label.entity == "customer" else ("customer", "offer", "pair")
    )
    features: list[Feature] = []
    with Past(history.tables, examples.table.select(*KEYS[label.entity]), history.backend) as past:
        for entity in entities:
            columns, described = _collect(past, usable, entity)
            frame = frame.merge(columns, on=list(KEYS[entity]), how="left", validate="many_to_one")
            features.extend(described)
    keys = [k for k in ("as_of", *KEYS[label.entity]) if k in frame]
    frame = frame.sort_values(list(dict.fromkeys(keys)), kind="stable").reset_index(drop=True)
    return Snapshot(frame, tuple(features), examples.left_out, unavailable)


@dataclass(frozen=True)
class ProfileFrames:
    """Features of every customer, offer and customer × offer pair as of one moment."""

    as_of: datetime
    customers: pd.DataFrame
    offers: pd.DataFrame
    pairs: pd.DataFrame
    features: tuple[Feature, ...]
    unavailable: tuple[Unavailable, ...] = ()


def profile(
    history: History,
    groups: Sequence[FeatureGroup],
    as_of: datetime,
    offer_ids: Sequence[str] = (),
) -> ProfileFrames:
    """Return the features of all customers, and of customers × the given offers, as of a moment.

    Customers are ordered by id; pairs by customer, then in the order of ``offer_ids``.
    """
    usable, unavailable = available(groups, history.tables)
    moment = as_of.replace(tzinfo=None)
    people = history.tables["customers"].select("customer_id").distinct()
    if offer_ids:
        order = {o: i for i, o in enumerate(offer_ids)}
        offers = ibis.memtable({"offer_id": list(offer_ids)}, schema={"offer_id": "string"})
        spine = people.cross_join(offers)
    else:
        order = {}
        spine = people.mutate(offer_id=ibis.literal(None, type="string"))
    spine = spine.mutate(as_of=ibis.literal(moment, type="timestamp"))
    empty = pd.DataFrame({"customer_id": [], "offer_id": []}, dtype=object)
    offer_frame, pair_frame = empty[["offer_id"]], empty
    with Past(history.tables, spine, history.backend) as past:
        customers, described = _collect(past, usable, "customer")
        features = list(described)
        if offer_ids:
            offer_frame, described = _collect(past, usable, "offer")
            features.extend(described)
            pair_frame, described = _collect(past, usable, "pair")
            features.extend(described)
    if offer_ids:
        rank = pair_frame["offer_id"].map(order)
        pair_frame = pair_frame.assign(_rank=rank).sort_values(["customer_id", "_rank"])
        pair_frame = pair_frame.drop(columns="_rank").reset_index(drop=True)
        offer_frame = offer_frame.set_index("offer_id").loc[list(offer_ids)].reset_index()
    customers = customers.sort_values("customer_id").reset_index(drop=True)
    return ProfileFrames(as_of, customers, offer_frame, pair_frame, tuple(features), unavailable)


def contacted(
    history: History, groups: Sequence[FeatureGroup], as_of: datetime, days: int
) -> pd.DataFrame:
    """Return one row per contact of the last days, with the customer's features as of the contact.

    A customer who was contacted several times has a row for each, as in an offer model's training
    rows. Offers and pairs have no columns here. Empty where nobody was contacted.
    """
    until = as_of.replace(tzinfo=None)
    contacts = history.tables["contacts"]
    recent = contacts.filter(
        (contacts.contacted_at >= until - timedelta(days=days)) & (contacts.contacted_at < until)
    )
    spine = recent.select("customer_id", "offer_id", as_of=recent.contacted_at).distinct()
    usable, _unavailable = available(groups, history.tables)
    keys = _to_pandas(spine)
    if keys.empty:
        return keys
    with Past(history.tables, spine, history.backend) as past:
        columns, _described = _collect(past, usable, "customer")
    on = list(KEYS["customer"])
    return keys.merge(columns, on=on, how="left", validate="many_to_one")


def _collect(
    past: Past, groups: Sequence[FeatureGroup], entity: Entity
) -> tuple[pd.DataFrame, tuple[Feature, ...]]:
    table, features = attach(past, groups, entity)
    frame = _to_pandas(table)
    for feature in features:
        if feature.dtype == "string":
            column = frame[feature.name].astype(object)
            frame[feature.name] = column.where(column.notna(), None)
        else:
            frame[feature.name] = pd.to_numeric(frame[feature.name]).astype("float64")
    return frame, features


def _to_pandas(table: ibis.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    for name in ("customer_id", "offer_id"):
        if name in frame:
            frame[name] = frame[name].astype(object)
    for name in ("as_of", "label_end"):
        if name in frame:
            frame[name] = pd.to_datetime(frame[name]).astype("datetime64[us]")
    return frame


Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Split:
    """Row masks of a time split, and how many rows fell into the gap between the two sides."""

    train: Mask
    test: Mask
    in_gap: int


def time_split(frame: pd.DataFrame, cut: datetime) -> Split:
    """Split rows in time: train where the label was complete by ``cut``, test from ``cut`` on.

    A row whose moment lies before the cut but whose label window runs past it belongs to neither
    side: to train on it would be to train on what the test slice is asked about.
    """
    moment = np.datetime64(cut.replace(tzinfo=None), "us")
    train = (frame["label_end"] <= moment).to_numpy()
    test = (frame["as_of"] >= moment).to_numpy()
    return Split(train, test, int((~train & ~test).sum()))


def rolling_folds(
    frame: pd.DataFrame, n_folds: int, *, min_share: float = 0.35, min_class: int = 20
) -> list[tuple[Mask, Mask]]:
    """Return (fit, validate) masks that roll forward in time inside training rows.

    Each fold validates on a block of later moments and fits on rows whose labels were complete
    before the block begins. Moments with fewer than ``min_share`` of all rows, or ``min_class`` of
    either class, to fit on are left out: a model of far fewer rows is more extreme than the final
    one, and what calibrates it would not suit the other.
    """
    starts = np.sort(frame["as_of"].unique())
    as_of, label_end = frame["as_of"].to_numpy(), frame["label_end"].to_numpy()
    y = frame["label"].to_numpy()
    usable = []
    for start in starts:
        fit = label_end <= start
        positives = int((y[fit] > 0).sum())
        if (
            fit.sum() >= min_share * len(frame)
            and min(positives, int(fit.sum()) - positives) >= min_class
        ):
            usable.append(start)
    folds = []
    for block in np.array_split(np.array(usable), min(n_folds, len(usable)) or 1):
        if len(block):
            validate = (as_of >= block[0]) & (as_of <= block[-1])
            folds.append((label_end <= block[0], validate))
    return folds
