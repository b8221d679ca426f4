"""A newcomer follows models/README.md to the letter on another shop, from file to changed decision.

The files and commands are taken from the manual's own code blocks. Only what is the reader's own is
put in: the toy shop has an aisle called COSMETICS, and its data lie six years later.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import toyshop
from commands import Run
from sklearn.metrics import roc_auc_score
from test_readme import blocks, commands, put_in, read

from nextbest.serve.bundle import load_bundle

PART = read("models/README.md").partition("## A label of your own")[0]
BLOCKS = [b for b in blocks() if b.manual == "models/README.md" and b.text in PART]


@pytest.fixture
def followed(shop: Path, cli: Run) -> tuple[Path, pd.DataFrame, pd.DataFrame]:
    """The shop after the guide, and its decisions before and after the guide's rule."""
    path = shop / "data" / "transactions.parquet"
    lines = pd.read_parquet(path).replace({"category": {"wine": "COSMETICS"}})
    lines.to_parquet(path, index=False)

    def run(*words: str | Path) -> str:
        # For the reader every command is a new process, which reads the rooms anew.
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", "")).startswith(str(shop)):
                del sys.modules[name]
        ran = cli(*words, "--project", shop)
        assert ran.code == 0, f"{words}: {ran.out}{ran.err}"
        return ran.out

    def decided(name: str) -> pd.DataFrame:
        out = shop / "out" / f"{name}.parquet"
        run("decide", "--channel", "mail", "--out", out)
        return pd.read_parquet(out).set_index("customer_id")

    before = None
    for block in BLOCKS:
        if block.file == "models/features.py":
            own = (shop / block.file).read_text(encoding="utf-8")
            imports = re.findall(r"`(from [^`]+ import [^`]+)`", PART)
            added = block.text.partition("\n")[2]
            whole = "\n".join([*imports, own, "", added])
            (shop / block.file).write_text(whole, encoding="utf-8")
        elif block.language == "python":
            (shop / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "toml":
            if block.file == "serving/policy.toml":
                before = decided("before")
            put_in(shop, block.file, block.text.replace("2017", "2023"))
        elif block.language == "bash":
            for words in commands(block.text):
                run(*words[1:])
    assert before is not None
    return shop, before, decided("after")


def test_a_model_of_ten_lines_is_found_registered_promoted_and_changes_decisions(
    followed: tuple[Path, pd.DataFrame, pd.DataFrame], cli: Run
) -> None:
    project, before, after = followed
    assert [b.language for b in BLOCKS] == ["python", "python", "toml", "bash", "toml"]
    ten = BLOCKS[0].text.splitlines()[1:]
    assert len([line for line in ten if line.strip()]) <= 10

    served = load_bundle(project / ".nextbest" / "serving")
    assert "champion" in served.sources["cosmetics"]["aliases"]
    profiles = served.profiles
    score = profiles.matrix[:, profiles.columns.index("cosmetics_probability")]
    by_id = pd.Series(score, index=profiles.ids())
    asked = by_id.notna()
    assert 0 < asked.sum() < toyshop.CUSTOMERS  # who bought nothing for 90 days has no score
    assert by_id[asked].between(0, 1).all() and by_id[asked].nunique() > 50

    # The score knows something: it is higher for those who did buy from the aisle afterwards.
    lines = pd.read_parquet(project / "data" / "transactions.parquet")
    later = lines[(lines["category"] == "COSMETICS") & (lines["ordered_at"] >= "2023-12-01")]
    buyers = by_id.index.isin(set(later["customer_id"]))
    assert roc_auc_score(buyers[asked], by_id[asked]) > 0.6

    # The rule takes every offer from those at or below its limit, or unknown, and from nobody else.
    chosen = before["rank"] > 0
    likely = by_id.reindex(before.index) > 0.2
    assert (chosen & likely).sum() > 10 and (chosen & ~likely).sum() > 10
    kept = after["rank"] > 0
    assert not kept[~likely].any()
    pd.testing.assert_series_equal(kept[likely], chosen[likely])
    same = before.index[chosen & likely]
    assert np.array_equal(before.loc[same, "offer_id"], after.loc[same, "offer_id"])
    unlikely = before.index[chosen & ~likely & before.index.map(asked)][0]
    said = cli("decide", "--channel", "mail", "--customer", unlikely, "--explain",
               "--project", project).out  # fmt: skip
    assert "likely to buy cosmetics" in said
