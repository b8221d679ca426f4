"""Places on the line from 0 to 1: uniform, independent, and the same for ever."""

from __future__ import annotations

import hashlib

import numpy as np
from scipy.stats import chisquare, kstest

from nextbest.decide.hashing import uniforms

SALT = "0123456789abcdef"
IDS = [str(i) for i in range(20_000)]


def test_a_place_is_the_keyed_hash_that_the_manual_names() -> None:
    """Written out once more: a change would move customers in and out of every holdout."""
    key = hashlib.blake2b(SALT.encode(), digest_size=32).digest()
    said = (5).to_bytes(8, "big") + b"offer" + "Jürgen".encode()
    digest = hashlib.blake2b(said, digest_size=8, key=key, person=b"reach").digest()
    expect = (int.from_bytes(digest, "big") >> 12) / 2**52
    assert uniforms(SALT, "reach", ["Jürgen"], about="offer").tolist() == [expect]
    assert uniforms(SALT, "holdout", ["1", "2"]).tolist() == [
        0.14965890816861283, 0.24671447332745666,
    ]  # fmt: skip


def test_places_are_uniform_and_independent_of_purpose_salt_and_subject() -> None:
    places = [
        uniforms(SALT, "holdout", IDS),
        uniforms(SALT, "arms", IDS),
        uniforms(SALT[::-1], "holdout", IDS),
        uniforms(SALT, "holdout", IDS, about="18"),
    ]
    for one in places:
        assert one.min() >= 0
        assert one.max() < 1
        assert kstest(one, "uniform").pvalue > 0.01
    for i, one in enumerate(places):
        for other in places[:i]:
            cells = np.histogram2d(one, other, bins=5, range=[[0, 1], [0, 1]])[0]
            assert chisquare(cells.ravel()).pvalue > 0.01


def test_names_and_subjects_do_not_run_into_each_other() -> None:
    ab, a = (uniforms(SALT, "x", [name], about=about) for name, about in (("c", "ab"), ("bc", "a")))
    assert ab != a
    assert uniforms(SALT, "x", ["\ud800"]) != uniforms(SALT, "x", ["\ud801"])
    assert uniforms(SALT, "x", []).shape == (0,)
