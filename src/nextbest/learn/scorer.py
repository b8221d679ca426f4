"""Score customers and offers with a stored model, the same bits alone as in a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from nextbest.errors import ArtifactError, DataError, did_you_mean
from nextbest.learn.calibration import Calibrator
from nextbest.learn.components import TOLERANCE, Component, gather
from nextbest.learn.estimators import FeatureEncoder

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Contribution", "LoadedModel", "OfferScorer"]

Array = npt.NDArray[np.float64]
#: What a customer-lifetime-value model gives for each customer.
CLV_COLUMNS: Final = ("clv", "clv_low", "clv_high", "p_alive")
_CELLS_PER_CHUNK: Final = 4_000_000


@dataclass(frozen=True)
class Contribution:
    """How much one raw feature moved a score, against the average customer.

    ``effect`` is in log-odds for a probability, in the model's own unit for a value.
    """

    feature: str
    value: float | str | None
    effect: float


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A verified model, ready to score; made by ``artifact.load``.

    Attributes: ``name``; ``kind`` probability, value or clv; ``version`` in the registry, None for
    a model that is not registered; ``digest`` SHA-256 of its manifest; ``columns`` raw input
    columns in order; ``metadata`` what its maker noted; ``libraries`` versions it was made with.
    """

    name: str
    kind: str
    digest: str
    encoder: FeatureEncoder
    components: tuple[Component, ...]
    calibrator: Calibrator
    value_model: Any = None
    version: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """Raw input columns, in order."""
        return tuple(self.encoder.columns_)

    @property
    def tolerance(self) -> float:
        """How far scores before calibration may lie apart on another machine."""
        return max((c.tolerance for c in self.components), default=TOLERANCE)

    @cached_property
    def raw_column_of(self) -> npt.NDArray[np.intp]:
        """For each encoded column the number of the raw column it came from."""
        return raw_column_of(self.encoder)

    def encode(self, data: pd.DataFrame | Mapping[str, Any]) -> Array:
        """Return the encoded (n, k) matrix of a frame, a mapping of columns, or one row's mapping.

        Raises ``DataError`` where a column is missing or is not a number.
        """
        if isinstance(data, Mapping):
            data = {
                name: [v] if isinstance(v, str) or np.ndim(v) == 0 else v
                for name, v in data.items()
            }
        return np.ascontiguousarray(self.encoder.transform(data), dtype=np.float64)

    def frame(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the model's columns of some raw rows, as float64 or text with None."""
        import pandas as pd

        columns: dict[str, Any] = {}
        for c in self.columns:
            values = rows[c].astype(object)
            if c in self.encoder.vocabulary_:
                columns[c] = values.where(values.notna(), None).reset_index(drop=True)
            else:
                columns[c] = pd.to_numeric(values).astype("float64").reset_index(drop=True)
        return pd.DataFrame(columns)

    def score(self, data: pd.DataFrame | Mapping[str, Any]) -> Array:
        """Return one number per row: the calibrated probability, or the expected value.

        Parameters: ``data`` a frame (n rows), a mapping of equally long columns, or one row as a
        mapping; it must hold every column of ``columns``. Unknown is NaN or None. Raises
        ``DataError`` where a column is missing, is not a number, or a row cannot be scored.
        """
        if self.kind == "clv":
            return self.scores(data)["clv"]
        return self.score_matrix(self.encode(data))

    def scores(self, data: pd.DataFrame | Mapping[str, Any]) -> dict[str, Array]:
        """Return every output column: ``score``, or a value model's ``clv``, ``clv_low``, ...

        A customer whose history is unknown has unknown (NaN) value.
        """
        if self.kind != "clv":
            return {"score": self.score(data)}
        return _customer_value(self.value_model, self.columns, self.encode(data), self.metadata)

    def uncalibrated(self, x: Array) -> Array:
        """Return the (n,) weighted means of the components for an encoded (n, k) matrix."""
        total = np.zeros(len(x))
        for component in self.components:
            total += component.weight * component.predict(x)
        return total

    def score_matrix(self, x: Array) -> Array:
        """Return the (n,) scores of an encoded (n, k) matrix."""
        if len(x) == 0:
            return np.empty(0)
        out = self.calibrator.apply(self.uncalibrated(x))
        bad = np.flatnonzero(~np.isfinite(out))
        if bad.size:
            raise DataError(
                f'model "{self.name}"',
                f"{bad.size} of {len(out)} rows have no score, the first is row {bad[0]}",
                expected="numbers in every column that the model cannot impute",
                got="unknown values",
            )
        return out

    def contributions(self, row: Mapping[str, Any], top: int = 5) -> tuple[Contribution, ...]:
        """Return the features that moved one row's score most, strongest first.

        Parameters: ``row`` raw values by column name; ``top`` how many. Trees give exact Shapley
        values, linear parts coefficient x (value - mean), ONNX graphs the mean change when this
        column alone takes the values of a few stored customers (which, unlike the others, need not
        add up to the score); a blend averages them with its weights. All before calibration, which
        is monotone and so keeps the signs.
        """
        return self.contributions_matrix(self.encode(row), [row[c] for c in self.columns], top)

    def effects(self, x: Array) -> Array:
        """Return (n, len(columns)): what each raw column adds to each encoded row's score.

        In log-odds for a probability, before calibration, against the average row.
        """
        encoded = np.zeros(x.shape)
        for component in self.components:
            encoded += component.weight * component.contributions(x)
        return gather(encoded, self.raw_column_of, len(self.columns))

    def contributions_matrix(
        self, x: Array, values: Sequence[Any], top: int = 5
    ) -> tuple[Contribution, ...]:
        """Return the same as ``contributions`` for one encoded row (1, k) and its raw values."""
        raw = self.effects(x)[0]
        order = np.argsort(-np.abs(raw), kind="stable")[:top]
        return tuple(
            Contribution(self.columns[i], _plain(values[i]), float(raw[i]))
            for i in order
            if raw[i] != 0
        )


def raw_column_of(encoder: FeatureEncoder) -> npt.NDArray[np.intp]:
    """For each encoded column the number of the raw column it came from."""
    widths = [len(encoder.vocabulary_.get(c, ("",))) for c in encoder.columns_]
    return np.repeat(np.arange(len(widths)), widths)


def _plain(value: Any) -> float | str | None:
    if value is None or isinstance(value, str):
        return value
    number = float(value)
    return None if np.isnan(number) else number


def _customer_value(
    model: Any, columns: tuple[str, ...], x: Array, metadata: Mapping[str, Any]
) -> dict[str, Array]:
    import pandas as pd

    known = np.isfinite(x).all(axis=1)
    rfm = pd.DataFrame(x[known], columns=list(columns))
    parts: dict[str, Any] = dict.fromkeys(CLV_COLUMNS, np.empty(0))
    if len(rfm):
        parts |= dict(model.predict(rfm)) | dict(
            model.predict_interval(rfm, metadata["interval_level"])
        )
    out: dict[str, Array] = {}
    for name in CLV_COLUMNS:
        out[name] = np.full(len(x), np.nan)
        out[name][known] = np.asarray(parts[name], dtype=np.float64)
    return out


# ------------------------------------------------------------------ customers x offers


class _Source:
    """Encodes the raw columns that one matrix (customers, offers or pairs) brings."""

    def __init__(self) -> None:
        self.raw: list[int] = []  # columns of the matrix that pass through
        self.passed: list[int] = []  # their encoded columns
        self.tables: list[tuple[int, slice, Array]] = []  # column, encoded columns, code -> one-hot

    def write(self, matrix: Array, out: Array) -> None:
        """Fill the encoded columns of ``out`` (..., k) from ``matrix`` (..., k_raw)."""
        out[..., self.passed] = matrix[..., self.raw]
        for column, target, table in self.tables:
            codes = matrix[..., column]
            # Unknown (NaN) takes the table's last row, which is all zero.
            out[..., target] = table[np.where(np.isnan(codes), len(table) - 1, codes).astype(int)]


class OfferScorer:
    """The propensity of every customer for every offer, in bounded memory.

    Parameters
    ----------
    model : a loaded probability model.
    customer_columns, offer_columns, pair_columns : names of the columns of the matrices given to
        ``propensity``; each of the model's columns must be in one of them.
    categories : for each categorical column its values; the matrix holds positions in this list
        (NaN unknown).

    Raises
    ------
    ArtifactError : a column of the model is in none of the matrices, or in two of them.
    """

    def __init__(
        self,
        model: LoadedModel,
        customer_columns: Sequence[str],
        offer_columns: Sequence[str],
        pair_columns: Sequence[str],
        categories: Mapping[str, Sequence[str]],
    ) -> None:
        self.model = model
        self._categories = {name: tuple(values) for name, values in categories.items()}
        self._names = [tuple(c) for c in (customer_columns, offer_columns, pair_columns)]
        self._sources = [_Source() for _ in self._names]
        self._width = len(model.encoder.feature_names_)
        self._places = [self._place(column) for column in model.columns]
        for number, (column, (which, position)) in enumerate(
            zip(model.columns, self._places, strict=True)
        ):
            encoded = np.flatnonzero(model.raw_column_of == number)
            source = self._sources[which]
            if column not in model.encoder.vocabulary_:
                source.raw.append(position)
                source.passed.append(int(encoded[0]))
            elif encoded.size:
                target = slice(int(encoded[0]), int(encoded[-1]) + 1)
                source.tables.append((position, target, self._one_hot(column)))

    def _place(self, column: str) -> tuple[int, int]:
        found = [(w, names.index(column)) for w, names in enumerate(self._names) if column in names]
        if len(found) != 1:
            everything = [name for names in self._names for name in names]
            raise ArtifactError(
                f'model "{self.model.name}"',
                f'its column "{column}" is in {len(found)} of the customer, offer and pair columns',
                expected="exactly 1",
                action=did_you_mean(column, everything) or "Refresh the profiles",
            )
        if (column in self.model.encoder.vocabulary_) != (column in self._categories):
            raise ArtifactError(
                f'model "{self.model.name}"',
                f'its column "{column}" is text on one side and a number on the other',
                expected="the same kind in the model and in the profiles",
                action="Train the model again on the data that the profiles are made of.",
            )
        return found[0]

    def _one_hot(self, column: str) -> Array:
        vocabulary = self.model.encoder.vocabulary_[column]
        values = self._categories[column]
        table = np.zeros((len(values) + 1, len(vocabulary)))
        for code, value in enumerate(values):
            if value in vocabulary:
                table[code, vocabulary.index(value)] = 1.0
        return table

    def propensity(self, customers: Array, offers: Array, pairs: Array) -> Array:
        """Return the (n, m) calibrated probability that each customer responds to each offer.

        Parameters: ``customers`` (n, k), ``offers`` (m, k_o), ``pairs`` (n, m, k_p), float64 in
        the columns named to the constructor, NaN unknown. Raises ``DataError`` on another shape.
        """
        n, m = len(customers), len(offers)
        shapes = [(n, len(self._names[0])), (m, len(self._names[1])), (n, m, len(self._names[2]))]
        given = [customers.shape, offers.shape, pairs.shape]
        if given != shapes:
            raise DataError(
                "propensity", "matrices do not fit", expected=str(shapes), got=str(given)
            )
        out = np.empty((n, m))
        chunk = max(1, _CELLS_PER_CHUNK // max(1, m * self._width))
        for start in range(0, n if m else 0, chunk):
            rows = slice(start, min(start + chunk, n))
            x = np.empty((rows.stop - start, m, self._width))
            self._sources[0].write(customers[rows, None, :], x)
            self._sources[1].write(offers[None, :, :], x)
            self._sources[2].write(pairs[rows], x)
            out[rows] = self.model.score_matrix(x.reshape(-1, self._width)).reshape(-1, m)
        return out

    def contributions(
        self, customer: Array, offer: Array, pair: Array, top: int = 5
    ) -> tuple[Contribution, ...]:
        """Return what moved one customer's propensity for one offer most, strongest first.

        Parameters: one row each, (k,), (k_o,) and (k_p,), in the columns named to the constructor.
        """
        x = np.empty((1, self._width))
        rows = (customer, offer, pair)
        for source, row in zip(self._sources, rows, strict=True):
            source.write(row[None, :], x)
        values = [
            self._label(column, float(rows[which][position]))
            for column, (which, position) in zip(self.model.columns, self._places, strict=True)
        ]
        return self.model.contributions_matrix(x, values, top)

    def _label(self, column: str, value: float) -> float | str | None:
        if np.isnan(value) or column not in self._categories:
            return _plain(value)
        return self._categories[column][int(value)]
