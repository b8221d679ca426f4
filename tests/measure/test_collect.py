"""The query against pandas on the same rows, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pytest

from nextbest.errors import DataError
from nextbest.measure.collect import Outcome, collect, open_file, outcome_of


def table(frame: pd.DataFrame) -> ibis.Table:
    return ibis.duckdb.connect().create_table("t", frame)


def people(n: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame({
        "customer_id": [f"c{i}" for i in range(n)],
        "arm": np.where(rng.random(n) < 0.8, "policy", "no_contact"),
        "region": rng.choice(["north", "south", None], n),
        "spend": rng.gamma(2, 10, n), "orders": rng.poisson(2, n) + 1,
        "bought": rng.random(n) < 0.2, "spend_before": rng.gamma(2, 10, n),
    })  # fmt: skip


OUTCOMES = (
    Outcome("spend", before="spend_before"), Outcome("bought"), outcome_of("spend/orders"),
)  # fmt: skip


def test_sums_are_those_of_pandas() -> None:
    frame = people()
    cells = collect(table(frame), OUTCOMES, ["region"])
    assert len(cells) == 6 and sum(c.n for c in cells) == len(frame)
    for cell in cells:
        mine = frame[(frame.arm == cell.arm) & (frame.region.fillna("unknown") == cell.segments[0])]
        sums = dict(cell.sums)
        assert sums["spend"].n == cell.n == len(mine)
        assert sums["spend"].xy == pytest.approx((mine.spend * mine.spend_before).sum())
        assert sums["spend"].yy == pytest.approx((mine.spend**2).sum())
        assert sums["spend/orders"].x == mine.orders.sum()
        assert (sums["bought"].y, sums["bought"].binary) == (mine.bought.sum(), True)
        assert not sums["spend"].binary


def test_decisions_of_one_customer_are_one_unit() -> None:
    frame = people(90)
    # Each customer's outcome in three parts: what was bought is any of them, what was spent all.
    rows = pd.concat([frame.assign(spend=frame.spend * k, bought=frame.bought & (k == 0.5))
                      for k in (0.2, 0.3, 0.5)])  # fmt: skip
    rows["orders"] = rows["orders"].astype(float) / 3
    once, thrice = (collect(table(f), OUTCOMES, ["region"]) for f in (frame, rows))
    for a, b in zip(once, thrice, strict=True):
        assert (a.arm, a.segments, a.n) == (b.arm, b.segments, b.n)
        for (_, x), (_, y) in zip(a.sums, b.sums, strict=True):
            assert list(vars(x).values()) == pytest.approx(list(vars(y).values()))


def test_who_was_not_there_before_counts_zero_before() -> None:
    frame = people()
    frame.loc[:50, "spend_before"] = None
    cells = collect(table(frame), OUTCOMES[:1])
    total = sum(dict(c.sums)["spend"].x for c in cells)
    assert total == pytest.approx(frame.spend_before.sum())


def spoil(column: str, value: Any, rows: int = 1) -> pd.DataFrame:
    frame = people()
    frame[column] = frame[column].astype(object)
    frame.loc[: rows - 1, column] = value
    return frame.infer_objects()


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (spoil("arm", None, 3), "arm is empty. Got 3 of 400 customers"),
        (spoil("customer_id", None), "customer_id is empty. Got 1 of 400 customers"),
        (spoil("spend", None, 2), 'outcome "spend" is empty. Got 2 of 400 customers. Write 0'),
        (spoil("spend", float("inf")), "not a finite number. Got 1 of"),
        (spoil("spend_before", float("inf")), "not a finite number. Got 1 of"),
        (people().drop(columns="arm"), 'column "arm" is missing'),
        (people().rename(columns={"spend": "spent"}), 'Did you mean "spent"?'),
        (people().assign(spend="much"), 'column "spend" has the wrong type'),
        (people().head(0), "it has no rows"),
        (pd.concat([people(), people().head(9).assign(arm="x")]), "in two arms. Got 9"),
        (pd.concat([people(), people().head(9).assign(region="x")]), "segments or values before"),
        (pd.concat([people(), people().head(2).assign(arm=None)]), "in two arms. Got 2"),
    ],
)  # fmt: skip
def test_what_is_refused_with_numbers(frame: pd.DataFrame, says: str) -> None:
    with pytest.raises(DataError) as refused:
        collect(table(frame), OUTCOMES, ["region"], where="log.csv")
    assert says in str(refused.value)
    assert str(refused.value).startswith("log.csv: ")


def test_an_outcome_cannot_be_a_segment_and_none_is_no_question() -> None:
    with pytest.raises(DataError, match="cannot be a segment"):
        collect(table(people()), OUTCOMES, ["spend"])
    with pytest.raises(DataError, match="no outcome is named"):
        collect(table(people()), ())


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_files(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"log{suffix}"
    frame = people()
    frame.to_parquet(file) if suffix == ".parquet" else frame.to_csv(file, index=False)
    found = collect(open_file(file), [Outcome("bought"), Outcome("orders")])
    assert found == collect(table(frame), [Outcome("bought"), Outcome("orders")])
    file.write_bytes(b"\x00\xff broken" if suffix == ".parquet" else b"")
    with pytest.raises(DataError):
        collect(open_file(file), OUTCOMES)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        open_file(tmp_path / "log.csv")
    with pytest.raises(DataError, match=r"Must be \.parquet or \.csv; got \.xlsx"):
        open_file(tmp_path / "log.xlsx")
    for wrong in ("", "a/", "/b"):
        with pytest.raises(DataError, match="a name is missing"):
            outcome_of(wrong)
