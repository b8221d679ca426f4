"""`nextbest decide --compare` on a whole shop: tables, JSON, one page, and nothing recorded."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import shop
from typer.testing import CliRunner

from nextbest.cli import app
from nextbest.errors import UsageError
from nextbest.measure.whatif_page import write
from nextbest.serve.batch import decide_batch, situation_for
from nextbest.serve.runtime import load_state, open_store
from nextbest.serve.whatif import what_if


@pytest.fixture
def other(project: Path) -> Path:
    """A policy that never sends to people who are about to leave."""
    for room in ("models", "training"):
        (project / room).mkdir()
    (project / "training" / "training.toml").write_text("")
    file = project / "other.toml"
    file.write_text(shop.POLICY + '\n[suitability]\n"stays <b>" = "churn_probability < 0.5"\n')
    return file


def command(project: Path, *words: str) -> list[str]:
    return ["decide", "--project", str(project), "--channel", "mail", *words]


def test_the_command_compares_and_records_nothing(project: Path, other: Path) -> None:
    page = project / "page.html"
    words = command(project, "--policy", str(other), "--compare", "--html", str(page))
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    own, tried = load_state(project), load_state(project, policy_file=other)
    situation = situation_for(own, "mail")
    for name, state in (("project", own), ("other", tried)):
        summary = decide_batch(state, situation)
        assert facts["total"]["contacts"][name] == sum(summary.offers.values())
        assert facts["total"]["reached"][name] == summary.with_offer
        profit = facts["total"]["expected_profit"][name]
        assert profit == pytest.approx(summary.expected_profit)
        assert {o: f["contacts"][name] for o, f in facts["offers"].items()} == summary.offers
    assert facts["total"]["contacts"]["difference"] < 0
    assert len(facts["segments"]) == 10 and facts["segments_by"] == "clv"
    assert {s["customers"] for s in facts["segments"].values()} == {6}
    lost = [f for f in facts["funnel"]["a"] if f["reason"] == "stays <b>"]
    assert lost[0]["project"] == 0 < lost[0]["other"]
    store = open_store(project)
    assert len(store.history(None)[0].at) == 0
    store.close()
    done = CliRunner().invoke(app, words)
    said = " ".join(done.stdout.split())
    assert "Offers made, by segment" in said and "Nothing was recorded." in said
    assert "a: suitability: stays <b>" in said


def test_the_page_is_whole_and_safe(project: Path, other: Path) -> None:
    own = load_state(project)
    situation = situation_for(own, "mail")
    facts = what_if(own, load_state(project, policy_file=other), situation, None, "age_band")
    assert list(facts["segments"]) and set(facts["segments"]) == {"young", "old", "unknown"}
    write(facts, project / "page.html")
    text = (project / "page.html").read_text()
    seen: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append(tag)
            named = dict(attrs)
            assert "src" not in named and not str(named.get("href", "data:")).startswith("http")

    Reader().feed(text)
    assert "script" not in seen and "b" not in seen and seen.count("table") == 5
    assert "stays &lt;b&gt;" in text
    contacts = facts["total"]["contacts"]
    row = re.search(r"offers made</th>(.*?)</tr>", text, re.S)
    assert row and re.findall(r">([-+\d]+)</td>", row[1]) == [
        str(contacts["project"]), str(contacts["other"]), f"{contacts['difference']:+}",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="the page cannot be written there"):
        write(facts, project / "no" / "page.html")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--compare"], "--compare: with which policy?"),
        (["--compare", "--policy", "OTHER", "--customer", "c01"], "--customer: it says nothing"),
        (["--compare", "--policy", "OTHER", "--record"], "--record"),
        (["--policy", "OTHER", "--html", "p.html"], "--html: it says nothing without --compare"),
        (["--by", "clv"], "--by: it says nothing without --compare"),
        (["--compare", "--policy", "OTHER", "--by", "age_bnd"], 'Did you mean "age_band"'),
        (["--compare", "--policy", "no.toml"], "no.toml"),
    ],
)
def test_misuse_is_said(project: Path, other: Path, words: list[str], says: str) -> None:
    full = command(project, *[str(other) if word == "OTHER" else word for word in words])
    done = CliRunner().invoke(app, full)
    assert done.exit_code != 0 and says in str(done.exception)
