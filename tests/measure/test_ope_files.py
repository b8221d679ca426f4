"""The tables that evaluation reads, the page and the words that it writes, and the command."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import Run
from logged_world import uniform

from nextbest.errors import DataError, UsageError
from nextbest.measure import ope
from nextbest.measure.ope import page
from nextbest.measure.ope.log import LoggedPolicy
from nextbest.measure.ope.table import log_of, pair_of


def frames(log: LoggedPolicy, target: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A log and a target as the tables that `read_pair` reads."""
    ids = [f"d{i:05}" for i in range(len(log))]

    def vectors(matrix: np.ndarray) -> list[str]:
        return [
            json.dumps({o: float(p) for o, p in zip(log.offer_ids, row, strict=False) if p > 0})
            for row in matrix
        ]

    names = (*log.offer_ids, None)
    assert log.probabilities is not None and log.context is not None
    left = pd.DataFrame({
        "decision_id": ids,
        "customer_id": [f"c{c}" for c in log.customer_ids],
        "offer_id": [names[a] for a in log.action],
        "selection_probability": log.selection_probability,
        "reward": log.reward,
        "probabilities": vectors(log.probabilities),
        **{f"feature_{j}": log.context[:, j] for j in range(log.context.shape[1])},
    })  # fmt: skip
    right = pd.DataFrame({"decision_id": ids, "probabilities": vectors(target)})
    return left, right.sample(frac=1, random_state=0)


@pytest.fixture(scope="module")
def made() -> tuple[LoggedPolicy, np.ndarray]:
    log, target, _ = uniform().draw(0, 1_500)
    return log, target


@pytest.fixture(scope="module")
def files(made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ope")
    for name, frame in zip(("log", "target"), frames(*made), strict=True):
        frame.to_parquet(folder / f"{name}.parquet")
    return folder / "log.parquet", folder / "target.parquet"


def test_a_log_comes_back_as_it_was_written(made, files):
    log, target = made
    read, policy = ope.read_pair(*files)
    assert read.offer_ids == log.offer_ids
    for name in ("action", "reward", "selection_probability", "probabilities", "context"):
        assert getattr(read, name) == pytest.approx(getattr(log, name), abs=1e-9), name
    assert policy == pytest.approx(target, abs=1e-9)
    assert ope.read_log(files[0]).action.tolist() == log.action.tolist()


def test_slots_and_eligible_offers():
    log = pd.DataFrame({
        "decision_id": ["d", "d"], "customer_id": ["c", "c"], "offer_id": ["x", None],
        "selection_probability": [0.5, 1.0], "reward": [1, 0], "position": [1, 2],
        "eligible": ['["x", "y"]', "[]"],
    })  # fmt: skip
    target = pd.DataFrame({
        "decision_id": ["d", "d"], "position": [2, 1], "probabilities": ["{}", '{"z": 0.25}'],
    })  # fmt: skip
    read, policy = pair_of(log, target)
    assert read.offer_ids == ("x", "y", "z")
    assert read.position.tolist() == [1, 2]
    assert read.supported.tolist() == [[True, True, False, True], [False, False, False, True]]
    assert policy.tolist() == [[0, 0, 0.25, 0.75], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda f: f.drop(columns="reward"), 'there is no column "reward"'),
        (lambda f: f.rename(columns={"offer_id": "offerid"}), 'Did you mean "offerid"?'),
        (lambda f: f.head(0), "there are no decisions"),
        (lambda f: pd.concat([f, f.head(2)]), "stands there twice.*2 repeated, such as d00000"),
        (lambda f: f.assign(customer_id=None), "customer_id is missing.*1,500 rows"),
        (lambda f: f.assign(reward="much"), "reward is not a number"),
        (lambda f: f.assign(selection_probability=np.nan), "aimed without logged chances"),
        (lambda f: f.assign(probabilities="[1]"), 'a JSON object like {"gold": 0.7}; got \\[1\\]'),
        (lambda f: f.assign(probabilities='{"a": "b"}'), "a JSON object"),
        (lambda f: f.assign(probabilities='{"a": 0.8, "b": 0.7}'), "more than 1.*got 1.5 in row 0"),
        (lambda f: f.assign(eligible="x"), 'a JSON list like \\["gold"\\]; got x'),
        (lambda f: f.assign(feature_0=np.inf), "feature_0 is missing or infinite"),
    ],
)
def test_what_is_wrong_with_a_log_is_said(made, change, problem):
    with pytest.raises(DataError, match=f"(?s){problem}"):
        log_of(change(frames(*made)[0]))


def test_a_target_must_cover_the_log(made):
    log, target = frames(*made)
    with pytest.raises(DataError, match=r"row for each of the 1,500 decisions.*none for 7 of them"):
        pair_of(log, target.iloc[7:])


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="Must be a Parquet file; got no such file"):
        ope.read_log(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("decision_id,reward")
    with pytest.raises(UsageError, match="Must be a Parquet file"):
        ope.read_log(tmp_path / "text.parquet")


# ------------------------------------------------------------------ the command and the page


class Tags(HTMLParser):
    """Counts elements, and finds what a page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href") and v != "data:,"]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_command_says_the_same_in_words_in_json_and_as_a_page(
    cli: Run, files: tuple[Path, Path], tmp_path: Path
):
    options = ("evaluate", "--log", files[0], "--target", files[1], "--margin", "0")
    html = tmp_path / "page.html"
    ran = cli(*options, "--html", html)
    assert ran.code == 0, ran.err
    said = json.loads(cli(*options, "--json").out)
    assert said["verdict"]["call"] == "ship"
    assert said["gate"]["passed"] is True
    direct = ope.evaluate(*ope.read_pair(*files))
    assert said["estimates"] == direct.to_dict()["estimates"]
    plain = " ".join(ran.out.split())
    assert " ".join(str(direct.verdict).split()) in plain
    text = html.read_text()
    tags = Tags(text)
    assert not tags.open
    assert not tags.loads
    assert "script" not in tags.seen
    assert tags.seen.count("circle") == len(direct.estimates)
    because = direct.verdict.because
    assert because[1:] in text
    for offer in direct.overlap.offers:
        if offer.target_share or offer.logged:
            assert f"{offer.logged:,}" in text
    assert max(len(line) for line in ran.out.splitlines() if "│" in line) <= 80


def test_the_command_refuses_without_a_traceback(cli: Run, files: tuple[Path, Path], tmp_path):
    log = pd.read_parquet(files[0])
    log["selection_probability"], log["probabilities"] = 1.0, '{"offer-0": 1}'
    log["offer_id"] = "offer-0"
    log.to_parquet(tmp_path / "sure.parquet")
    ran = cli("evaluate", "--log", tmp_path / "sure.parquet", "--target", files[1])
    assert ran.code == 1
    assert "no exploration" in ran.err
    assert "Traceback" not in ran.err
    assert cli("evaluate", "--log", tmp_path / "none", "--target", files[1]).code == 2


def test_a_gate_that_refuses_is_exit_code_1(cli: Run, files: tuple[Path, Path], made, tmp_path):
    log, _ = made
    frames(log, log.probabilities)[1].to_parquet(tmp_path / "same.parquet")
    ran = cli("evaluate", "--log", files[0], "--target", tmp_path / "same.parquet", "--margin", "0")
    assert ran.code == 1
    assert "✗ gate: gain per decision" in ran.out


def test_a_page_that_cannot_be_written(made, tmp_path):
    with pytest.raises(UsageError, match="the page cannot be written there"):
        page.write(ope.evaluate(*made), tmp_path / "no" / "page.html")


def test_the_manual_lists_every_column_of_a_log():
    text = (Path(__file__).parents[2] / "serving" / "README.md").read_text()
    for name, meaning in ope.LOG_COLUMNS.items():
        assert f"| `{name}` | " in text
        assert meaning.lower() in text.lower(), name
