"""The page: valid, self-contained, readable without sight, on a phone and in a real browser."""

import html
import json
import xml.etree.ElementTree as ET
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pages
import pytest
import shelf
from hypothesis import given
from hypothesis import strategies as st
from pages import needs_chromium, text_of
from shelf import Shelf
from typer.testing import CliRunner

from nextbest.cli import app
from nextbest.errors import UsageError
from nextbest.learn import compare_words as words
from nextbest.learn.compare import gather
from nextbest.learn.compare_charts import Series, bar, el, interval, lines, numbers, ticks
from nextbest.learn.compare_html import MEANINGS, render, write
from nextbest.learn.statistics import METRICS
from nextbest.project import Project

EVIL = '"><script>alert(1)</script>&amp;<b onload=x>'


@lru_cache(maxsize=1)
def comparisons():
    frame = shelf.rows(400, per_customer=2, offers=(EVIL, "mail"))
    frame.loc[:20, "offer_type"] = "rare"
    good, fair, poor = (shelf.scored(frame, k, seed=i) for i, k in enumerate((0.1, 2, 4)))
    kept = Shelf()
    kept.add(frame, fair, poor, aliases=["champion"], params={"label": EVIL, "C": "1"})
    kept.add(frame, good, poor, features=("a", EVIL), snapshot="s2", params={"label": EVIL})
    kept.add(frame, fair, poor, params={"label": EVIL, "C": "1"})
    kept.add(frame[:30], fair[:30], poor[:30], features=None, params={"label": EVIL})
    value = frame.drop(columns="offer_id").drop_duplicates("customer_id")
    value = value.assign(label=lambda d: np.exp(d["z"] + 4))
    worth = Shelf()
    for spread in (5, 40):
        guess = value["label"] + np.random.default_rng(0).normal(0, spread, len(value))
        worth.add(value, guess, guess * 0.7, kind="clv", low=guess - 9, high=guess + 9)
    old = Shelf()
    old.add(frame, fair, poor, tested=False, features=None, commit=None, snapshot=None)
    return {
        "two": gather(kept, "churn", [1, 2], resamples=60),
        "same": gather(kept, "churn", [1, 3], resamples=60),
        "many": gather(kept, "churn", resamples=60),
        "one": gather(kept, "churn", [2], resamples=60),
        "value": gather(worth, "worth", resamples=60),
        "refused": gather(kept, "churn", [1, 4], resamples=60),
        "old": gather(old, "churn"),
    }


NAMES = ("two", "same", "many", "one", "value", "refused", "old")


@lru_cache(maxsize=8)
def page(name):
    return render(comparisons()[name])


@lru_cache(maxsize=8)
def tree(name):
    return pages.tree_of(page(name))


# ------------------------------------------------------------------ valid and self-contained


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_loaded_and_nothing_runs(name):
    pages.assert_nothing_is_loaded_and_nothing_runs(page(name))


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_unique_and_every_reference_arrives(name):
    pages.assert_every_reference_arrives(page(name))


@pytest.mark.parametrize("name", NAMES)
def test_whoever_cannot_see_it_hears_the_same(name):
    pages.assert_whoever_cannot_see_it_hears_the_same(page(name))


def test_names_from_the_data_stay_names():
    text = page("two")
    assert "<script" not in text and "<b onload" not in text
    assert html.escape(EVIL, quote=False) in text
    root = tree("two")
    assert any(EVIL in text_of(e) for e in root.iter("th"))
    assert f"It predicts: {EVIL}." in text_of(root.find("body/header"))


@given(st.text(st.characters(exclude_categories=("Cs", "Cc"))))
def test_any_text_and_any_attribute_come_back_as_they_were(value):
    made = ET.fromstring(el("p", value, title=value))
    assert (made.text or "") == value and made.get("title") == value


# ------------------------------------------------------------------ it says what was found


@pytest.mark.parametrize(
    ("name", "headline"),
    [("two", "Better"), ("same", "The same"), ("one", "Better"), ("refused", "Cannot be compared"),
     ("old", "Cannot be compared"), ("value", "Worse")],
)  # fmt: skip
def test_the_verdict_stands_first(name, headline):
    root, found = tree(name), comparisons()[name]
    verdict = root.find("body/main/section")
    assert text_of(verdict.find("h2")) == headline
    answers = [text_of(e) for e in verdict.iter("dd")]
    assert answers == [" ".join(t.split()) for t in found.answers.values() if t]


def test_every_figure_and_its_difference_stand_in_the_table():
    main = comparisons()["two"].main
    table = tree("two").find(".//table[@class='stack']")
    rows = {r.find("th/span").text: r for r in table.findall("tbody/tr")}
    assert list(rows) == list(main.differences)
    for name, d in main.differences.items():
        cells = [text_of(c) for c in rows[name].findall("td")]
        assert cells[0] == words.number(main.to_figures[name].value)
        assert cells[1] == words.number(main.of_figures[name].value)
        assert cells[2].startswith(words.signed(d.difference.value))
        assert cells[2].endswith(
            f"{words.signed(d.difference.low)} to {words.signed(d.difference.high)}"
        )
        reading = {"better": "▲ better", "worse": "▼ worse", "unclear": "○ may be chance"}
        assert cells[-1] == reading[d.better]
    assert "decides" in text_of(rows["auc"].find("th"))


def test_segments_and_those_with_too_few_rows():
    text = text_of(tree("two"))
    assert "offer type: rare" in text and "20 are needed" in text and "not judged" in text
    assert "tenure: shortest" in text


def test_effects_of_both_and_features_that_one_lacks():
    text = text_of(tree("two"))
    assert "what a is" in text and "not used" in text and "1 feature added:" in text
    assert "keeps no effects of features" in text_of(tree("refused"))
    assert "What moves the score?" not in text_of(tree("value"))


def test_many_versions_are_listed_and_linked():
    root = tree("many")
    assert [a.text for a in root.iter("a")] == ["version 4", "version 3", "version 2"]
    assert root.find(".//div[@id='v2-v1']/h2").text == "Version 2 against version 1 (the champion)"


def test_every_metric_is_explained():
    assert set(METRICS) | {"interval_coverage"} == set(MEANINGS)


def test_it_is_written_or_refused_with_the_reason(tmp_path):
    write(comparisons()["one"], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text("utf-8") == page("one")
    with pytest.raises(UsageError, match="cannot be written"):
        write(comparisons()["one"], tmp_path / "nowhere" / "page.html")


def test_the_command_writes_the_page_beside_what_it_prints(tmp_path, monkeypatch):
    frame = shelf.rows(200)
    kept = Shelf()
    for noise in (2, 0.1):
        kept.add(frame, shelf.scored(frame, noise), shelf.scored(frame, 4))
    opened = SimpleNamespace(model=lambda name: None, registry=lambda: kept)
    monkeypatch.setattr(Project, "open", lambda folder: opened)
    ran = CliRunner().invoke(app, ["compare", "churn", "--html", str(tmp_path / "a.html")])
    assert ran.exit_code == 0 and "Version 2 is better than version 1 by auc." in ran.stdout
    assert "version 2 less version 1" in ran.stdout and str(tmp_path / "a.html") in ran.stdout
    ran = CliRunner().invoke(app, ["compare", "churn", "--json", "--html", f"{tmp_path}/b.html"])
    assert json.loads(ran.stdout)["answers"]["better"].startswith("Version 2 is better")
    assert (tmp_path / "a.html").read_text("utf-8") == (tmp_path / "b.html").read_text("utf-8")
    ran = CliRunner().invoke(app, ["compare", "churn", "--html", f"{tmp_path}/no/b.html"])
    assert isinstance(ran.exception, UsageError)


# ------------------------------------------------------------------ charts


def test_a_line_lies_where_its_numbers_say():
    s = Series("a", [0.0, 0.5, 1.0], [0.0, 1.0, 0.5], "of")
    root = ET.fromstring(lines("t", [s], "x", "y", identifier="i", diagonal=True))
    points = [tuple(map(float, p.split(","))) for p in root.find("polyline").get("points").split()]
    guide = root.find("line[@class='guide']")
    left, bottom, right, top = (float(guide.get(k)) for k in ("x1", "y1", "x2", "y2"))
    middle = (left + right) / 2, (top + bottom) / 2
    wanted = [(left, bottom), (middle[0], top), (right, middle[1])]
    assert np.allclose(points, wanted, atol=0.11)


def test_a_long_line_is_thinned_but_keeps_its_ends():
    x = np.linspace(0, 1, 5_000)
    root = ET.fromstring(lines("t", [Series("a", x, x, "of")], "x", "y", identifier="i"))
    points = root.find("polyline").get("points").split()
    assert len(points) == 120
    assert float(points[0].split(",")[0]) < float(points[-1].split(",")[0])


def test_the_bar_stands_right_of_the_line_only_if_better():
    def places(value, low, high):
        root = ET.fromstring(interval(value, low, high, 0.4, "better", "x"))
        bar_ = root.find("line[@class='span better']")
        at = (bar_.get("x1"), root.find("circle").get("cx"), bar_.get("x2"))
        return [float(p.rstrip("%")) for p in at]

    assert places(0.2, 0.1, 0.4) == pytest.approx([61.5, 73, 96])
    assert places(-0.2, -0.4, 0.0) == pytest.approx([4, 27, 50])
    assert places(0.0, 0.0, 0.0) == [50, 50, 50]


def test_a_bar_of_nothing_and_of_everything():
    widths = [ET.fromstring(bar(v, 2.0, "of")).find("rect").get("width") for v in (0, 1, 2)]
    assert widths == ["0.0%", "50.0%", "100.0%"]


@given(st.floats(1e-6, 1e9))
def test_ticks_are_round_few_and_inside(end):
    found = ticks(end)
    assert 2 <= len(found) <= 7 and found[0] == 0
    assert end * 0.6 <= found[-1] <= end * (1 + 1e-6)
    assert np.allclose(np.diff(found), found[1])


def test_a_curve_between_its_points():
    assert numbers({"x": [0.0, 1.0], "y": [0.0, 2.0]}, ("x", "y"), 0.25) == 0.5


# ------------------------------------------------------------------ a real browser

WIDTHS = (320, 390, 768, 1280)


@needs_chromium
def test_a_browser_shows_every_page_at_every_width_without_a_complaint(tmp_path):
    wide = ("two", "many", "value")
    wanted = [(name, page(name), w) for name in NAMES for w in (WIDTHS if name in wide else (390,))]
    pages.assert_a_browser_shows(tmp_path, wanted)


@needs_chromium
def test_a_browser_opens_the_file_itself(tmp_path):
    file = tmp_path / "page.html"
    write(comparisons()["two"], file)
    dom, complaints = pages.browse(tmp_path, "--dump-dom", file.as_uri())
    assert complaints == [] and "Is it better?" in dom
