"""Score customers and offers with a stored model, the same bits alone as in a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from nextbest.errors import ArtifactError, DataError, did_you_mean
from nextbest.learn.calibration import Calibrator
from nextbest.learn.components import TOLERANCE, Component, gather
from nextbest.learn.encoding import FeatureEncoder

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Contribution", "FoldedOffers", "LoadedModel", "OfferScorer"]

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

    @property
    def scorer_kind(self) -> str:
        """What computes the scores, such as ``bitmask+linear``; ``clv`` for lifetime value.

        ``lightgbm`` in place of ``bitmask`` says that trees are scored the slow way.
        """
        if self.kind == "clv":
            return self.kind
        return "+".join(dict.fromkeys(component.scorer_kind for component in self.components))

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
        return self.calibrated(self.uncalibrated(x)) if len(x) else np.empty(0)

    def calibrated(self, scores: Array) -> Array:
        """Return the (n,) final scores of the components' (n,) weighted means."""
        out = self.calibrator.apply(scores)
        finite = np.isfinite(out)
        if not finite.all():
            bad = np.flatnonzero(~finite)
            raise DataError(
                f'model "{self.name}"',
                f"{bad.size} of {len(scores)} rows have no score, the first is row {bad[0]}",
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
        self._raw: list[int] = []  # for each encoded column the matrix's column
        self._encoded: list[int] = []
        self._one_hot: list[int] = []  # which of them say whether a code is theirs
        self._codes: list[float] = []

    def add(self, raw: int, encoded: int, code: float | None = None) -> None:
        """Take up an encoded column: a number that passes, or whether a category has a code."""
        if code is not None:
            self._one_hot.append(len(self._raw))
            self._codes.append(code)
        self._raw.append(raw)
        self._encoded.append(encoded)

    @cached_property
    def columns(self) -> npt.NDArray[np.intp]:
        """Numbers of the encoded columns, in the order of `encode`."""
        return np.array(self._encoded, dtype=np.intp)

    @cached_property
    def _codes_row(self) -> Array:
        return np.array(self._codes)

    @cached_property
    def _flags(self) -> slice | npt.NDArray[np.intp]:
        """Where the flags of categories stand; a slice, which is a view, where side by side."""
        first, last = self._one_hot[0], self._one_hot[-1]
        if self._one_hot == list(range(first, last + 1)):
            return slice(first, last + 1)
        return np.array(self._one_hot, dtype=np.intp)

    @cached_property
    def _as_it_is(self) -> bool:
        """Whether what comes out are the first columns as they stand."""
        return not self._one_hot and self._raw == list(range(len(self._raw)))

    @cached_property
    def _take(self) -> npt.NDArray[np.intp]:
        return np.array(self._raw, dtype=np.intp)

    def encode(self, matrix: Array) -> Array:
        """Return the encoded columns (..., k) of ``matrix`` (..., k_raw); not to be written to."""
        if self._as_it_is and matrix.shape[-1] == len(self._raw):
            return matrix
        out = matrix.take(self._take, axis=-1)
        if self._one_hot:
            # Unknown (NaN) equals no code.
            out[..., self._flags] = out[..., self._flags] == self._codes_row
        return out


@dataclass(frozen=True, eq=False)
class FoldedOffers:
    """A catalogue of m offers, with what depends on offers alone done; made by `OfferScorer.fold`.

    Attributes: ``encoded`` (m, k_o); ``parts`` what each of the model's parts made of it.
    """

    encoded: Array
    parts: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.encoded)


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
            source = self._sources[which]
            encoded = np.flatnonzero(model.raw_column_of == number)
            codes = self._codes(column)
            for at, code in zip(encoded, codes, strict=True):
                source.add(position, int(at), code)
        customers, offers, pairs = (source.columns for source in self._sources)
        self._parts = [c.over_offers((customers, offers, pairs)) for c in model.components]

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

    def _codes(self, column: str) -> list[float | None]:
        """For each of a column's encoded columns the code that it stands for; None for a number."""
        if column not in self.model.encoder.vocabulary_:
            return [None]
        code_of = {value: float(code) for code, value in enumerate(self._categories[column])}
        # A value that no profile has gets a code that none has.
        return [code_of.get(value, -1.0) for value in self.model.encoder.vocabulary_[column]]

    def fold(self, offers: Array) -> FoldedOffers:
        """Do once for a catalogue what depends on its (m, k_o) offers alone."""
        if offers.ndim != 2 or offers.shape[1] != len(self._names[1]):
            self._refuse(f"(m, {len(self._names[1])})", str(offers.shape))
        encoded = self._sources[1].encode(offers)
        parts = [None if part is None else part.fold(encoded) for part in self._parts]
        return FoldedOffers(encoded, tuple(parts))

    def propensity(self, customers: Array, offers: Array | FoldedOffers, pairs: Array) -> Array:
        """Return the (n, m) calibrated probability that each customer responds to each offer.

        Parameters: ``customers`` (n, k), ``offers`` (m, k_o) or folded before, ``pairs``
        (n, m, k_p), float64 in the columns named to the constructor, NaN unknown. Raises
        ``DataError`` on another shape.
        """
        n, m = len(customers), len(offers)
        shapes = [(n, len(self._names[0])), (n, m, len(self._names[2]))]
        given = [customers.shape, pairs.shape]
        if given != shapes:
            self._refuse(str(shapes), str(given))
        folded = offers if isinstance(offers, FoldedOffers) else self.fold(offers)
        out = np.empty((n, m))
        chunk = max(1, _CELLS_PER_CHUNK // max(1, m * self._width))
        for start in range(0, n if m else 0, chunk):
            rows = slice(start, min(start + chunk, n))
            uncalibrated = self._uncalibrated(customers[rows], folded, pairs[rows])
            out[rows] = self.model.calibrated(uncalibrated.reshape(-1)).reshape(-1, m)
        return out

    def _uncalibrated(self, customers: Array, offers: FoldedOffers, pairs: Array) -> Array:
        """The (n, m) weighted means of the components, added up as `LoadedModel` does."""
        n, m = pairs.shape[:2]
        encoded = [self._sources[0].encode(customers), self._sources[2].encode(pairs)]
        joined: Array | None = None
        total = np.zeros((n, m))
        for component, part, folded in zip(
            self.model.components, self._parts, offers.parts, strict=True
        ):
            if part is not None:
                found = part.predict(encoded[0], folded, encoded[1])
            else:
                if joined is None:
                    joined = self._joined(encoded[0], offers.encoded, encoded[1])
                found = component.predict(joined).reshape(n, m)
            total += component.weight * found
        return total

    def _joined(self, customers: Array, offers: Array, pairs: Array) -> Array:
        n, m = pairs.shape[:2]
        x = np.empty((n, m, self._width))
        parts = (customers[:, None, :], offers[None, :, :], pairs)
        for source, part in zip(self._sources, parts, strict=True):
            x[..., source.columns] = part
        return x.reshape(-1, self._width)

    def _refuse(self, expected: str, got: str) -> NoReturn:
        raise DataError("propensity", "matrices do not fit", expected=expected, got=got)

    def contributions(
        self, customer: Array, offer: Array, pair: Array, top: int = 5
    ) -> tuple[Contribution, ...]:
        """Return what moved one customer's propensity for one offer most, strongest first.

        Parameters: one row each, (k,), (k_o,) and (k_p,), in the columns named to the constructor.
        """
        rows = (customer, offer, pair)
        c, o, p = (s.encode(row[None, :]) for s, row in zip(self._sources, rows, strict=True))
        x = self._joined(c, o, p[None, :])
        values = [
            self._label(column, float(rows[which][position]))
            for column, (which, position) in zip(self.model.columns, self._places, strict=True)
        ]
        return self.model.contributions_matrix(x, values, top)

    def _label(self, column: str, value: float) -> float | str | None:
        if np.isnan(value) or column not in self._categories:
            return _plain(value)
        return self._categories[column][int(value)]
