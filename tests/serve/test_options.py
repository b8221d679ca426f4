"""What operators set in the environment is read, or refused with all faults at once."""

from __future__ import annotations

import pytest

from nextbest.errors import ConfigError
from nextbest.serve.options import Options, options_of


def test_without_settings_answers_are_durable() -> None:
    assert options_of({}) == Options(queued=False, deadline_seconds=10.0, backlog=1_024)


def test_settings_are_read() -> None:
    settings = {
        "NEXTBEST_DURABILITY": "queued",
        "NEXTBEST_DEADLINE": "0.25",
        "NEXTBEST_BACKLOG": "64",
    }
    assert options_of(settings) == Options(queued=True, deadline_seconds=0.25, backlog=64)


def test_all_faults_are_named_at_once() -> None:
    settings = {
        "NEXTBEST_DURABILITY": "maybe",
        "NEXTBEST_DEADLINE": "soon",
        "NEXTBEST_BACKLOG": "1.5",
    }
    with pytest.raises(ConfigError) as refused:
        options_of(settings)
    said = str(refused.value).splitlines()
    assert len(said) == 3
    assert 'Must be "durable" or "queued"; got "maybe".' in said[0]
    assert "NEXTBEST_DEADLINE" in said[1] and "NEXTBEST_BACKLOG" in said[2]


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "3601"])
def test_a_deadline_that_cannot_be_kept_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="NEXTBEST_DEADLINE"):
        options_of({"NEXTBEST_DEADLINE": value})
