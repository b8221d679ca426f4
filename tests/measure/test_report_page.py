"""The report: what it finds, the page in a real browser, and the data behind it."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache

import kpi_shop as toy
import numpy as np
import pages
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kpi_shop import COPIES, RATES, SETTINGS, UNTIL
from pages import needs_chromium, text_of

from nextbest.errors import UsageError
from nextbest.measure.collect import collect, outcome_of
from nextbest.measure.experiment import Design, read
from nextbest.measure.kpi.settings import OwnKpi, PeriodSettings
from nextbest.measure.report import charts, words
from nextbest.measure.report.drivers import drivers
from nextbest.measure.report.facts import Given, ModelHealth, gather
from nextbest.measure.report.files import tables, write_all
from nextbest.measure.report.findings import findings
from nextbest.measure.report.page import render
from nextbest.measure.tables import BEFORE, Watch, customers

EVIL = '"><script>alert(1)</script>&amp;<b onload=x>'


def model(name="churn", ece=0.02, drift="ok"):
    return ModelHealth(
        name, 3, datetime(2024, 5, 1), "auc", 0.9, 0.88, 0.92, EVIL, 0.8,
        (("gain over the simple rule", 0.1, 0.0, True), ("calibration error", ece, 0.05,
                                                         ece <= 0.05)), drift,
    )  # fmt: skip


def with_arms():
    found = toy.kinds()
    people = found.tables["customers"]
    arm = people.customer_id.substr(people.customer_id.length() - 2).cast("int64") % 2
    arms = (arm == 0).ifelse("policy", "no_contact")
    return replace(found, tables={**found.tables, "customers": people.mutate(arm=arms)})


@lru_cache(maxsize=1)
def full():
    """A report with everything in it, and names that try to be markup."""
    history = with_arms()
    own = {"large": OwnKpi(title=EVIL, numerator="amount", denominator="1", unit="currency")}
    settings = SETTINGS.model_copy(
        update={"kpis": own, "segments": {EVIL: {EVIL: "spend > 20"}},
                "period": PeriodSettings(days=28, response_days=7, every="week")}
    )  # fmt: skip
    now = toy.days(history, settings).current
    table = customers(history, Watch(now.starts_at, now.ends_at), ["revenue"])
    outcomes = [outcome_of("revenue", BEFORE)]
    experiment = read(collect(table, outcomes), outcomes, Design(planned=240))
    ids = [f"often-{i:02}" for i in range(COPIES)]
    scores = pa.table({"customer_id": ids, "clv": [float(i) for i in range(COPIES)]})
    told = Given(scores, None, (model(), model("clv", 0.2, "alarm")), experiment, "", True)
    return gather(EVIL, history, settings, RATES, UTC, told, made_at=UNTIL)


@lru_cache(maxsize=1)
def bare():
    """A report of customers and orders alone, of whom there are too few to part."""
    people = {f"c{i}": {"region": "x"} for i in range(40)}
    orders = [(f"c{i}", d, 10.0 + i) for i in range(40) for d in (60, 118 + i % 9, 150)]
    history = toy.history(people, orders)
    return gather("bare", history, SETTINGS, RATES, UTC, Given(), made_at=UNTIL)


REPORTS = {"full": full, "bare": bare}


@lru_cache(maxsize=2)
def page(name):
    return render(REPORTS[name]())


@lru_cache(maxsize=2)
def tree(name):
    return pages.tree_of(page(name))


# ------------------------------------------------------------------ what it says


def test_it_says_what_to_look_at():
    said = {f.text: f.kind for f in findings(full())}
    texts = " ".join(said)
    assert said["The note cost more than its responses brought in: -40.00 on 40 contacts."] == "bad"
    assert "Revenue was 11,200, 250.0% more than in the baseline." in texts
    assert "80 customers slipped out of the top value tier and 160 came into it." in texts
    assert "Response rate rose by 33.3 points to 58.3% (from 25.0%): more than noise." in said
    assert "Model clv: calibration error is 0.2, beyond 0.05." in said
    assert "Model clv: what it reads has moved since training." in said
    assert any(t.startswith("No verdict: revenue differs") for t in said)


def test_without_anything_but_orders_it_says_what_is_missing():
    report = bare()
    said = " ".join(f.text for f in findings(report))
    assert "No experiment: nobody was held out" in said and "No model is in use." in said
    assert "no contacts" in report.missing["attribution"]
    assert "too few customers" in report.missing["segments"]
    text = text_of(tree("bare"))
    assert "too few customers to part them" in text and "Nobody was contacted" in text
    assert "Response rate: the data hold no contacts." in text


def test_offers_reach_response_and_profit():
    """In the period: book to often and never on 141 and 142, note to often on 150."""
    by = {o.name: o for o in full().offers}
    book, note = by["book"], by["note"]
    assert (book.contacts, book.customers, book.answered, book.title) == (80, 80, 70, "The book")
    assert book.response.value == pytest.approx(70 / 80)
    assert book.profit == pytest.approx((600 + 2400) / 2 - 300 - 80)
    assert (note.answered, note.profit) == (0, -40.0) and note.profit_per_contact is not None
    assert {o.name for o in full().channels} == {"mail", "email"}


def test_the_totals_are_plain_sums():
    totals = {t.name: (t.value, t.before) for t in full().totals}
    assert totals["revenue"] == (280 * COPIES, 80 * COPIES)
    assert totals["contacts"] == (120, 80) and totals["new_customers"] == (80, 40)


def test_attribution_beside_an_experiment_is_marked():
    text = text_of(tree("full"))
    assert "descriptive" in text and "What contacts caused, the experiment says" in text
    assert "Simulated outcomes" in text and "Simulated outcomes" not in text_of(tree("bare"))


@given(st.lists(st.floats(1, 1e6), min_size=8, max_size=8))
def test_drivers_add_up_to_the_change_of_revenue(values):
    before, now = tuple(values[:4]), tuple(values[4:])
    found = drivers(before, now)
    assert sum(d.effect for d in found) == pytest.approx(now[3] - before[3], abs=1e-6 * max(values))


def test_a_factor_that_alone_has_moved_explains_everything():
    found = drivers((100, 50, 80, 1_000), (100, 50, 80, 1_500))
    assert [round(d.effect, 9) for d in found] == [0, 0, 0, 500]
    assert drivers((100, 50, 80, 0), (100, 50, 80, 1)) == ()


# ------------------------------------------------------------------ the page


@pytest.mark.parametrize("name", REPORTS)
def test_nothing_is_loaded_and_nothing_runs(name):
    pages.assert_nothing_is_loaded_and_nothing_runs(page(name))


@pytest.mark.parametrize("name", REPORTS)
def test_ids_are_unique_and_every_reference_arrives(name):
    pages.assert_every_reference_arrives(page(name))


@pytest.mark.parametrize("name", REPORTS)
def test_whoever_cannot_see_it_hears_the_same(name):
    pages.assert_whoever_cannot_see_it_hears_the_same(page(name))


def test_names_from_the_data_stay_names():
    assert "<script" not in page("full") and "<b onload" not in page("full")
    assert any(EVIL in text_of(e) for e in tree("full").iter("th"))


def test_every_figure_of_the_table_is_the_one_measured():
    rows = {}
    for row in tree("full").iter("tr"):
        name = row.find("th/span[@class='name']")
        if name is not None:
            rows.setdefault(name.text, row)
    for r in full().kpis:
        if r.value is not None and r.kpi.title in rows:
            cells = [text_of(c) for c in rows[r.kpi.title].findall("td")]
            assert cells[1].startswith(words.amount(r.value.value, r.kpi.unit)), r.kpi.name


# ------------------------------------------------------------------ the data behind it


def test_page_json_and_parquet_say_the_same(tmp_path):
    made = write_all(full(), tmp_path / "new" / "folder")
    facts = json.loads(made["json"].read_text("utf-8"))
    assert made["page"].read_text("utf-8") == page("full")
    kpis = pq.read_table(made["kpis"]).to_pylist()
    assert [k["kpi"] for k in kpis] == [r.kpi.name for r in full().kpis]
    by = {k["kpi"]: k for k in kpis}
    assert by["response_rate"]["value_value"] == pytest.approx(70 / 120)
    assert by["campaign_roi"]["flag"] == full().kpi("campaign_roi").flag
    written = {p.stem for p in made["json"].parent.glob("*.parquet")}
    assert written == set(tables(facts)) >= {
        "series", "segments", "segment_sizes", "migrations", "offers", "channels", "attribution",
        "models", "experiment", "drivers", "totals", "findings",
    }  # fmt: skip
    credit = pq.read_table(made["attribution"]).to_pandas()
    assert credit.groupby("rule")["responses"].sum().round(6).nunique() == 1


def test_the_page_goes_where_it_is_told_or_the_reason_is_said(tmp_path):
    made = write_all(bare(), tmp_path / "data", tmp_path / "page.html")
    assert made["page"] == tmp_path / "page.html" and made["page"].exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_all(bare(), tmp_path / "file")


# ------------------------------------------------------------------ charts


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_axes_are_round_few_and_cover(low, width):
    marks = charts.nice(low, low + width)
    assert 2 <= len(marks) <= 8
    room = 1e-6 * max(width, abs(low), 1e-9)
    assert marks[0] <= low + room and marks[-1] >= low + width - room
    assert np.allclose(np.diff(marks), marks[1] - marks[0], rtol=1e-3)


def test_a_trend_lies_where_its_numbers_say():
    dots = [charts.Dot(str(i), v, None, None, i < 2) for i, v in enumerate((0.0, 10.0, 5.0, 10.0))]
    root = ET.fromstring(charts.trend("t", dots, str, "i"))
    line = [p for p in root.findall("polyline") if p.get("class") == "line of"]
    points = [tuple(map(float, p.split(","))) for p in line[0].get("points").split()]
    base = root.findall("polyline")[0].get("points").split()
    assert points[0][1] == pytest.approx((float(base[0].split(",")[1]) + points[1][1]) / 2)


def test_bars_start_at_zero():
    root = ET.fromstring(charts.bars("t", [("a", 10.0, "x"), ("b", -5.0, "x")], str, "i"))
    zero = float(root.findall("line")[-1].get("x1"))
    first, second = root.findall("rect")
    assert float(first.get("x")) == zero
    assert float(second.get("x")) + float(second.get("width")) == pytest.approx(zero)
    assert float(first.get("width")) == pytest.approx(2 * float(second.get("width")), rel=0.01)


# ------------------------------------------------------------------ a real browser


@needs_chromium
def test_a_browser_shows_it_at_every_width_without_a_complaint(tmp_path):
    widths = {"full": (320, 390, 768, 1280)}
    wanted = [(name, page(name), width) for name in REPORTS for width in widths.get(name, (390,))]
    pages.assert_a_browser_shows(tmp_path, wanted)


@needs_chromium
def test_a_browser_prints_it(tmp_path):
    file, paper = tmp_path / "page.html", tmp_path / "page.pdf"
    file.write_text(page("full"), "utf-8")
    _, complaints = pages.browse(tmp_path, f"--print-to-pdf={paper}", file.as_uri())
    assert complaints == [] and paper.read_bytes().startswith(b"%PDF")
    sheets = len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes()))
    assert 2 <= sheets <= 12
