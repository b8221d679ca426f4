"""Offers of a table are a catalogue like that of a file: the file is the oracle."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextbest.decide.offers import AMOUNTS, Catalogue, Offer
from nextbest.decide.offertable import OfferTable
from nextbest.errors import ConfigError

AS_OF = datetime(2024, 1, 1)
SOURCE = {"source": {"table": "offers"}}

FULL: dict[str, Any] = {
    "id": "spring",
    "name": "Spring",
    "description": "flowers",
    "goal": "retain",
    "category": "garden",
    "channels": ["mail", "email"],
    "placements": ["cover"],
    "starts_at": datetime(2024, 2, 1, tzinfo=UTC),
    "ends_at": datetime(2024, 4, 1, tzinfo=UTC),
    "margin": "0.3 * spend_91d",
    "incentive_cost": 2.5,
    "incentive_shop_share": 0.5,
    "contact_cost": 0.6,
    "baseline_rate": 0.02,
    "max_cost_share_of_clv": 0.1,
    "max_contacts": 500,
    "max_contacts_per_batch": 100,
    "budget": 1000.0,
    "response_window_days": 28,
    "save_rate": 0.05,
    "exclusivity_group": "garden",
    "eligibility": "orders_182d >= 1",
    "applicability": "spend_91d > 10",
    "suitability": "churn_probability > 0.4",
    "active": True,
}


def table(*rows: dict[str, Any], as_of: datetime = AS_OF, elsewhere: tuple[str, ...] = ()) -> Any:
    return OfferTable.of(rows, Offer.model_fields, AMOUNTS, as_of, elsewhere)


def row(**changes: Any) -> dict[str, Any]:
    fields = {**FULL, **changes}
    return {"offer_id": fields.pop("id"), **fields}


def faults(raw: dict[str, Any], rows: OfferTable | None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Catalogue.from_dict(raw, "serving/offers.toml", rows)
    return [str(fault) for fault in caught.value.faults]


def test_every_field_may_stand_in_the_table() -> None:
    assert FULL.keys() == Offer.model_fields.keys()
    in_file = Catalogue.from_dict({"offers": [FULL]})
    found = Catalogue.from_dict(SOURCE, rows := "t", table(row()))
    assert rows and found.offers == in_file.offers
    assert found.content_hash == in_file.content_hash


def test_cells_come_as_databases_give_them() -> None:
    cells = row(
        channels="mail, email",
        placements=("cover",),
        starts_at=datetime(2024, 2, 1),  # UTC, as all times of the contract
        ends_at=datetime(2024, 4, 1),
        incentive_cost="2.5",  # a column of texts holds numbers beside expressions
        incentive_shop_share=Decimal("0.5"),
        max_contacts=500.0,  # whole numbers with nulls among them
        response_window_days=28.0,
        goal="retain",
    )
    assert Catalogue.from_dict(SOURCE, "t", table(cells)).offers == (
        Catalogue.from_dict({"offers": [FULL]}).offers
    )


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["table", "file", "defaults", "both"]), min_size=24, max_size=24))
def test_wherever_the_fields_stand_the_offer_is_the_same(places: list[str]) -> None:
    """The file goes before the row, field by field, and the row before the defaults."""
    entry, cells, defaults = {"id": "spring"}, {"offer_id": "spring"}, {}
    for (name, value), place in zip(list(FULL.items())[1:], places, strict=True):
        if place in ("file", "both"):
            entry[name] = value
        if place == "both":  # what the file states, the row and the defaults cannot change
            cells[name] = defaults[name] = "nonsense"
        if place == "table":
            cells[name] = value
        if place == "defaults":
            defaults[name], cells[name] = value, None
    raw = {**SOURCE, "defaults": defaults, "offers": [entry]}
    found = Catalogue.from_dict(raw, "t", table(cells))
    assert found.offers == Catalogue.from_dict({"offers": [FULL]}).offers
    assert all(
        (name in found.tabled["spring"], name in found.inherited["spring"])
        == (place == "table", place == "defaults")
        for name, place in zip(list(FULL)[1:], places, strict=True)
    )


def test_offers_of_the_table_follow_those_of_the_file_by_id() -> None:
    raw = {**SOURCE, "offers": [{**FULL, "id": "z"}, {"id": "m"}]}
    rows = table(row(id="t"), row(id="a"), row(id="m"))
    assert Catalogue.from_dict(raw, "t", rows).offer_ids == ("z", "m", "a", "t")
    # Without [source] the table is nobody's business.
    del raw["source"]
    raw["offers"] = raw["offers"][:1]
    assert Catalogue.from_dict(raw, "t", rows).offer_ids == ("z",)
    assert Catalogue.from_dict(raw, "t", rows).table is None


def test_the_hash_covers_what_the_table_says() -> None:
    one, same, other = (
        Catalogue.from_dict(SOURCE, "t", table(row(margin=m))) for m in (4.0, "4", 5.0)
    )
    assert one.content_hash == same.content_hash != other.content_hash


def test_what_has_ended_takes_part_only_where_the_file_names_it() -> None:
    over = row(id="over", ends_at=AS_OF, starts_at=None)
    last = row(id="last", ends_at=datetime(2024, 1, 1, 0, 0, 1), starts_at=None)
    rows = table(over, last, {"offer_id": "broken", "ends_at": datetime(2020, 1, 1)})
    assert rows.notes == (
        'table "offers": 2 of 3 offers had ended; they are in the catalogue only where'
        " serving/offers.toml names them",
    )
    assert Catalogue.from_dict(SOURCE, "t", rows).offer_ids == ("last",)
    named = Catalogue.from_dict({**SOURCE, "offers": [{"id": "over"}]}, "t", rows)
    assert named.offer_ids == ("over", "last")
    # What is served later is what was taken up then.
    assert named.table is not None and [e["id"] for e in named.table.entries] == ["last", "over"]


def test_what_is_taken_up_survives_the_bundle() -> None:
    taken = Catalogue.from_dict(SOURCE, "t", table(row(), row(id="b", starts_at=None))).table
    assert taken is not None
    again = OfferTable.from_json(json.loads(json.dumps(taken.to_json())))
    one, two = (Catalogue.from_dict(SOURCE, "t", t) for t in (taken, again))
    assert one == two


def test_columns_that_are_no_field_are_counted() -> None:
    rows = table(
        row(buyer="Ann", shelf=3, n_coupons=5, margin=None), elsewhere=("n_coupons", "known_at")
    )
    assert rows.notes == (
        'table "offers": 2 columns ignored by the catalogue, being no field of an offer:'
        " buyer, shelf",
    )
    assert table(row()).notes == ()


def test_faults_name_the_row_and_the_column() -> None:
    rows = table(
        row(id="a", goal="sel", save_rate=None),
        row(id="b", incentive_cost=-1),
        row(id="c", response_window_days=2.5),
        row(id="d", margin=None),
        row(id="e", starts_at=datetime(2024, 5, 1)),
        row(id="f", channels=","),
    )
    spot = 'training/sources.py: table "offers", offer '
    a, b, c, d, e, f = faults(SOURCE, rows)
    assert a.startswith(f'{spot}"a", column "goal": field "goal" is wrong. Must be \'sell\'')
    assert b.startswith(f'{spot}"b", column "incentive_cost": incentive_cost is negative')
    assert c.startswith(f'{spot}"c", column "response_window_days": field "response_window_days"')
    assert d.startswith(f'{spot}"d": field "margin" is missing. Must be a number, or an expression')
    assert e.startswith(f'{spot}"e", column "ends_at": the offer ends before it starts')
    assert f.startswith(f'{spot}"f", column "channels": field "channels" is wrong')


def test_a_fault_is_the_files_where_the_file_says_it() -> None:
    rows = table(row(id="a"))
    (own,) = faults({**SOURCE, "offers": [{"id": "a", "budget": -1.0}]}, rows)
    assert own.startswith('serving/offers.toml: offer "a": field "budget" is wrong')
    (shared,) = faults({**SOURCE, "defaults": {"goal": "x"}}, table(row(goal=None, save_rate=None)))
    assert shared.startswith('serving/offers.toml: [defaults]: field "goal" is wrong')
    missing = faults({**SOURCE, "offers": [{"id": "new", "name": "N"}]}, rows)
    assert {m.partition(": field ")[0] for m in missing} == {'serving/offers.toml: offer "new"'}
    assert all("no such offer as of the last `nextbest refresh`" in m for m in missing)


def test_a_formula_of_the_table_is_bound_and_its_faults_name_it() -> None:
    catalogue = Catalogue.from_dict(SOURCE, "t", table(row(margin="0.3 * spent")))
    with pytest.raises(ConfigError, match=r'table "offers", offer "spring", column "margin"'):
        catalogue.bind({})


def test_a_source_needs_its_rows_and_has_one_table() -> None:
    (said,) = faults(SOURCE, None)
    assert said.startswith("serving/offers.toml: [source]: the offers of the table")
    assert 'Return "offers" from training/sources.py, then run `nextbest refresh`' in said
    (said,) = faults({"source": {"table": "campaigns"}}, table(row()))
    assert "serving/offers.toml: [source]" in said and "'offers'" in said
    (said,) = faults({"source": {"tabel": "offers"}, "offers": [FULL]}, None)[:1]
    assert 'unknown field "tabel"' in said or 'field "table" is missing' in said
    (said,) = faults(SOURCE, table())
    assert "there is no offer" in said
