"""The log and the target policy as tidy tables: one row per decision (and slot), in Parquet.

What is missing to 1 in a row's ``probabilities`` is the probability of making no offer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from nextbest.errors import DataError, Fault, UsageError, did_you_mean
from nextbest.measure.ope.log import TOLERANCE, Array, LoggedPolicy

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LOG_COLUMNS", "TARGET_COLUMNS", "log_of", "pair_of", "read_log", "read_pair"]

#: Columns of a decision log; those of `_OPTIONAL` may be absent.
LOG_COLUMNS: Final[Mapping[str, str]] = {
    "decision_id": "text; with `position` it names the row",
    "customer_id": "whose decision it was",
    "offer_id": "the offer made; null for no offer",
    "selection_probability": "probability with which that was chosen, above 0",
    "reward": "what it earned, in the shop's currency, or 0/1; 0 where nothing came of it",
    "probabilities": "JSON object, offer_id to probability; what is missing to 1 is no offer",
    "eligible": "JSON list of the offer_ids that could be chosen",
    "position": "slot of the answer, from 1",
    "feature_NAME": "a number known when deciding, for the reward model; null where unknown",
}
TARGET_COLUMNS: Final[Mapping[str, str]] = {
    "decision_id": "as in the log",
    "probabilities": "JSON object, offer_id to probability; what is missing to 1 is no offer",
    "position": "slot of the answer, from 1; where the log has it",
}
_OPTIONAL: Final = frozenset({"probabilities", "eligible", "position", "feature_NAME"})
_FEATURE: Final = "feature_"
_NOT_RANDOM: Final = (
    "Offers that were aimed without logged chances cannot be evaluated: who got one differs from "
    "who did not. Let a policy with exploration decide, and evaluate its log"
)


def read_log(file: Path | str) -> LoggedPolicy:
    """Read a decision log from a Parquet file with `LOG_COLUMNS`.

    Raises
    ------
    UsageError: the file is not there or is no Parquet file.
    DataError: a column is missing or wrong; all faults at once, with rows.
    """
    return log_of(_read(file), str(file))


def read_pair(log: Path | str, target: Path | str) -> tuple[LoggedPolicy, Array]:
    """Read a decision log, and another policy's probabilities for the same decisions.

    Returns
    -------
    The log, and the target's (n, m + 1) probabilities in the log's order.

    Raises
    ------
    UsageError, DataError: as `read_log`; or a logged decision is not in the target's file.
    """
    return pair_of(_read(log), _read(target), str(log), str(target))


def log_of(frame: pd.DataFrame, where: str = "decision log") -> LoggedPolicy:
    """Return the log that a frame with `LOG_COLUMNS` holds; ``DataError`` with every fault."""
    _check_log(frame, where)
    return _log(frame, where, _offers(frame, where))


def pair_of(
    log: pd.DataFrame,
    target: pd.DataFrame,
    where: str = "decision log",
    target_where: str = "target policy",
) -> tuple[LoggedPolicy, Array]:
    """Return the log and the target's (n, m + 1) probabilities that two frames hold."""
    _check_log(log, where)
    _check_columns(target, TARGET_COLUMNS, target_where)
    _check_keys(target, target_where)
    wanted = _objects(target, "probabilities", target_where, dict)
    named = {offer for one in wanted for offer in one}
    offers = tuple(sorted({*_offers(log, where), *named}))
    place = {key: i for i, key in enumerate(_keys(target, "position" in log))}
    keys = _keys(log, "position" in log)
    missing = [key for key in keys if key not in place]
    if missing:
        raise DataError(
            target_where, "it does not cover every logged decision",
            expected=f"a row for each of the {len(keys):,} decisions in {where}",
            got=f"none for {len(missing):,} of them, such as {missing[0][0]}",
        )  # fmt: skip
    matrix = _matrix(wanted, offers, target_where)[[place[key] for key in keys]]
    return _log(log, where, offers), matrix


def _read(file: Path | str) -> pd.DataFrame:
    import pandas as pd

    path = Path(file)
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        got = "no such file" if not path.exists() else str(error).splitlines()[0]
        raise UsageError(str(path), "it cannot be read", expected="a Parquet file", got=got) from (
            error
        )


# ------------------------------------------------------------------ checks


def _check_log(frame: pd.DataFrame, where: str) -> None:
    _check_columns(frame, LOG_COLUMNS, where)
    _check_keys(frame, where)


def _check_columns(frame: pd.DataFrame, columns: Mapping[str, str], where: str) -> None:
    needed = [c for c in columns if c not in _OPTIONAL or columns is TARGET_COLUMNS]
    needed = [c for c in needed if c != "position"]
    faults = []
    for name in needed:
        if name not in frame:
            action = did_you_mean(name, [str(c) for c in frame.columns])
            if name == "selection_probability":
                action = _NOT_RANDOM
            faults.append(Fault(where, f'there is no column "{name}"', columns[name],
                                "none of that name", action))  # fmt: skip
    if not faults and frame.empty:
        faults.append(Fault(where, "there are no decisions", "at least 1 row", "0"))
    if faults:
        raise DataError(faults=faults)


def _check_keys(frame: pd.DataFrame, where: str) -> None:
    names = ["decision_id", "customer_id"] if "customer_id" in frame else ["decision_id"]
    faults = [
        Fault(where, f"{name} is missing", "given in every row",
              f"{int(frame[name].isna().sum()):,} rows without")
        for name in names
        if frame[name].isna().any()
    ]  # fmt: skip
    keys = ["decision_id", "position"] if "position" in frame else ["decision_id"]
    twice = frame[frame.duplicated(keys)]
    if len(twice):
        faults.append(
            Fault(where, "a decision stands there twice", f"one row for each {' and '.join(keys)}",
                  f"{len(twice):,} repeated, such as {twice['decision_id'].iloc[0]}",
                  "With several offers per answer, say which is which in `position`")
        )  # fmt: skip
    if faults:
        raise DataError(faults=faults)


def _keys(frame: pd.DataFrame, with_position: bool) -> list[tuple[Any, ...]]:
    names = ["decision_id"]
    if with_position and "position" in frame:
        names.append("position")
    return list(frame[names].itertuples(index=False, name=None))


# ------------------------------------------------------------------ columns to arrays


def _offers(frame: pd.DataFrame, where: str) -> tuple[str, ...]:
    named = set(frame["offer_id"].dropna().astype(str))
    if "probabilities" in frame:
        named |= {o for one in _objects(frame, "probabilities", where, dict) for o in one}
    if "eligible" in frame:
        named |= {o for one in _objects(frame, "eligible", where, list) for o in one}
    return tuple(sorted(named))


def _log(frame: pd.DataFrame, where: str, offers: tuple[str, ...]) -> LoggedPolicy:
    column = {offer: i for i, offer in enumerate(offers)}
    made = frame["offer_id"].astype(object)
    action = [len(offers) if missing else column[str(offer)]
              for offer, missing in zip(made, made.isna(), strict=True)]  # fmt: skip
    probabilities = eligible = position = None
    if "probabilities" in frame:
        probabilities = _matrix(_objects(frame, "probabilities", where, dict), offers, where)
    if "eligible" in frame:
        eligible = np.zeros((len(frame), len(offers) + 1), dtype=bool)
        eligible[:, -1] = True  # "No offer" always competes.
        for i, names in enumerate(_objects(frame, "eligible", where, list)):
            eligible[i, [column[name] for name in names]] = True
    if "position" in frame:
        position = _numbers(frame, "position", where).astype(np.int64)
    features = [str(c) for c in frame.columns if str(c).startswith(_FEATURE)]
    context = [_numbers(frame, name, where, nullable=True) for name in features]
    return LoggedPolicy(
        customer_ids=frame["customer_id"].to_numpy(dtype=object),
        offer_ids=offers,
        action=np.asarray(action, dtype=np.int64),
        reward=_numbers(frame, "reward", where),
        selection_probability=_numbers(frame, "selection_probability", where),
        probabilities=probabilities,
        eligible=eligible,
        position=position,
        context=np.column_stack(context) if context else None,
    )


def _numbers(frame: pd.DataFrame, name: str, where: str, *, nullable: bool = False) -> Array:
    try:
        values = frame[name].astype(np.float64).to_numpy()
    except (TypeError, ValueError) as error:
        got = str(error).splitlines()[0]
        raise DataError(where, f"{name} is not a number", expected="a number in every row",
                        got=got) from None  # fmt: skip
    bad = np.flatnonzero(np.isinf(values) | (np.isnan(values) & (not nullable)))
    if bad.size:
        raise DataError(
            where, f"{name} is missing or infinite", expected="a number in every row",
            got=f"{bad.size:,} of {values.size:,} rows that are not, the first in row {bad[0]}",
            action=_NOT_RANDOM if name == "selection_probability" else "",
        )  # fmt: skip
    return np.asarray(values, dtype=np.float64)


def _objects(frame: pd.DataFrame, name: str, where: str, kind: type) -> list[Any]:
    """The JSON of a column; the same text is read once."""
    read: dict[Any, Any] = {}
    found = []
    for row, text in enumerate(frame[name]):
        if text not in read:
            read[text] = _parsed(text, kind, where, name, row)
        found.append(read[text])
    return found


def _parsed(text: Any, kind: type, where: str, name: str, row: int) -> Any:
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        value = None
    form = 'a JSON object like {"gold": 0.7}' if kind is dict else 'a JSON list like ["gold"]'
    if isinstance(value, kind) and all(_fits(value, kind)):
        return value
    raise DataError(where, f"{name} in row {row} is not what was expected", expected=form,
                    got=str(text)[:60])  # fmt: skip


def _fits(value: Any, kind: type) -> Iterator[bool]:
    if kind is list:
        yield from (isinstance(v, str) for v in value)
    else:
        yield from (isinstance(v, int | float) and not isinstance(v, bool) for v in value.values())


def _matrix(
    vectors: Sequence[Mapping[str, float]], offers: tuple[str, ...], where: str
) -> npt.NDArray[np.float64]:
    column = {offer: i for i, offer in enumerate(offers)}
    matrix = np.zeros((len(vectors), len(offers) + 1))
    for i, vector in enumerate(vectors):
        for offer, p in vector.items():
            matrix[i, column[offer]] = p
    rest = 1 - matrix.sum(axis=1)
    over = np.flatnonzero(~(rest >= -TOLERANCE))
    if over.size:
        raise DataError(
            where, "the probabilities of a decision add up to more than 1",
            expected="at most 1; the rest is no offer",
            got=f"{1 - rest[over[0]]:g} in row {over[0]}, and {over.size - 1:,} more such rows",
        )  # fmt: skip
    matrix[:, -1] = np.where(rest > TOLERANCE, rest, 0.0)
    return matrix
