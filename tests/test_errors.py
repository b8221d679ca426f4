"""The tree of errors, and how a fault reads."""

from __future__ import annotations

import inspect

import pytest

from nextbest import errors
from nextbest.errors import ConfigError, Fault, NextbestError, UsageError, did_you_mean

CODES = {
    "NextbestError": "error",
    "UsageError": "usage",
    "ConfigError": "config-invalid",
    "RuleError": "rule-invalid",
    "DataError": "data-invalid",
    "FitError": "fit-failed",
    "ArtifactError": "artifact-invalid",
    "RegistryError": "registry",
    "GateRefusal": "gate-refused",
    "NotFoundError": "not-found",
    "StoreError": "store",
    "InternalError": "internal",
}


def classes() -> dict[str, type[NextbestError]]:
    found = vars(errors).values()
    return {c.__name__: c for c in found if inspect.isclass(c) and issubclass(c, NextbestError)}


def test_the_codes_that_programs_match_on_do_not_change() -> None:
    assert {name: error.code for name, error in classes().items()} == CODES
    assert set(CODES) < set(errors.__all__)


def test_only_misuse_exits_with_two() -> None:
    assert {name for name, error in classes().items() if error.exit_code == 2} == {"UsageError"}
    assert {error.exit_code for error in classes().values()} == {1, 2}


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault("here", "it is broken"), "here: it is broken."),
        (Fault("here", "it is broken."), "here: it is broken."),
        (Fault("here", "which one?"), "here: which one?"),
        (Fault("here", "wrong", "a number"), "here: wrong. Must be a number."),
        (Fault("here", "wrong", "a number", "'x'"), "here: wrong. Must be a number; got 'x'."),
        (Fault("here", "wrong", got="'x'"), "here: wrong. Got 'x'."),
        (Fault("here", "wrong", action="Mend it"), "here: wrong. Mend it."),
        (Fault("here", "wrong", action='Did you mean "y"?'), 'here: wrong. Did you mean "y"?'),
    ],
)
def test_a_fault_reads_as_where_what_expected_got_action(fault: Fault, text: str) -> None:
    assert str(fault) == text


def test_an_error_carries_one_fault_or_many() -> None:
    one = ConfigError("here", "wrong", expected="right", got="left", action="Turn.")
    assert one.faults == (Fault("here", "wrong", "right", "left", "Turn."),)
    assert str(one) == "here: wrong. Must be right; got left. Turn."
    many = UsageError(faults=[Fault("a", "one"), Fault("b", "two")])
    assert str(many) == "a: one.\nb: two."


def test_data_errors_are_value_errors_too() -> None:
    assert issubclass(errors.DataError, ValueError)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("chrun", 'Did you mean "churn"?'), ("zzz", ""), ("", "")],
)
def test_the_closest_name_is_offered_if_it_is_close(name: str, hint: str) -> None:
    assert did_you_mean(name, ["churn", "propensity"]) == hint
