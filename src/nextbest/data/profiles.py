"""Profiles: today's features and scores of every customer, memory-mapped for serving.

A profile directory holds plain NumPy arrays, never pickled, and a manifest with their SHA-256.
Customers are sorted by id, one matrix row each, so that finding one is a binary search.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nextbest.data.feature import Feature
from nextbest.errors import ArtifactError, DataError

if TYPE_CHECKING:
    import pandas as pd

    from nextbest.data.snapshots import ProfileFrames

FORMAT = 2
_ARRAYS = ("customer_ids", "matrix", "offer_matrix", "pairs")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Profiles:
    """Features and scores of n customers, m offers and their n × m pairs as of one moment.

    Attributes
    ----------
    customer_ids : (n,) UTF-8 bytes, sorted.
    columns, matrix : customer columns and their (n, k) values; NaN is unknown. A column named in
        ``categories`` holds codes into its vocabulary.
    offer_ids, offer_columns, offer_matrix : (m,) ids and (m, ko) values.
    pair_columns, pairs : (n, m, kp) values.
    features : what each column means.
    """

    version: str
    as_of: datetime
    customer_ids: NDArray[np.bytes_]
    columns: tuple[str, ...]
    matrix: Array
    categories: Mapping[str, tuple[str, ...]]
    offer_ids: tuple[str, ...]
    offer_columns: tuple[str, ...]
    offer_matrix: Array
    pair_columns: tuple[str, ...]
    pairs: Array
    features: tuple[Feature, ...] = ()

    def __len__(self) -> int:
        return len(self.customer_ids)

    def index(self, customer_id: str) -> int | None:
        """Return a customer's row, or None where there is no such customer."""
        try:
            key = customer_id.encode()
        except UnicodeEncodeError:
            return None  # Half a character, which JSON can spell and no id holds.
        if len(key) > self.customer_ids.dtype.itemsize:
            return None  # NumPy would compare a truncated key, and might find somebody else.
        at = int(np.searchsorted(self.customer_ids, np.bytes_(key)))
        if at < len(self.customer_ids) and self.customer_ids[at] == key:
            return at
        return None

    def ids(self, rows: Sequence[int] | NDArray[np.int64] | slice = slice(None)) -> list[str]:
        """Return the customer ids of the given rows as text."""
        return [b.decode() for b in self.customer_ids[rows].tolist()]

    @property
    def kinds(self) -> dict[str, str]:
        """``number`` or ``string`` for each customer, offer and pair column."""
        names = (*self.columns, *self.offer_columns, *self.pair_columns)
        return {c: "string" if c in self.categories else "number" for c in names}

    def save(self, directory: Path) -> None:
        """Write the profiles to an empty or new directory."""
        directory.mkdir(parents=True, exist_ok=True)
        digests = {}
        for name in _ARRAYS:
            file = directory / f"{name}.npy"
            with file.open("wb") as handle:
                np.save(handle, np.ascontiguousarray(getattr(self, name)), allow_pickle=False)
            digests[file.name] = _sha256(file)
        manifest = {
            "format": FORMAT,
            "version": self.version,
            "as_of": self.as_of.replace(tzinfo=UTC).isoformat(),
            "columns": list(self.columns),
            "categories": {k: list(v) for k, v in self.categories.items()},
            "offer_ids": list(self.offer_ids),
            "offer_columns": list(self.offer_columns),
            "pair_columns": list(self.pair_columns),
            "features": [f.to_dict() for f in self.features],
            "sha256": digests,
        }
        text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)
        (directory / "manifest.json").write_text(text)

    @classmethod
    def open(cls, directory: Path) -> Profiles:
        """Open profiles, memory-mapped and read-only.

        Raises
        ------
        ArtifactError : a file is missing, damaged, or does not fit the manifest.
        """
        where = f"profiles {directory.name}"
        try:
            m: dict[str, Any] = json.loads((directory / "manifest.json").read_text())
            arrays = {}
            for name in _ARRAYS:
                file = directory / f"{name}.npy"
                if m["format"] != FORMAT or _sha256(file) != m["sha256"][file.name]:
                    raise ArtifactError(
                        where,
                        f"{file.name} is not the file that was written",
                        expected=f"format {FORMAT} with the manifest's SHA-256",
                        action="Run `nextbest refresh` to build the profiles again.",
                    )
                # As a plain array over the mapped file: `np.memmap` adds to each look at it.
                arrays[name] = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
            profiles = cls(
                version=m["version"],
                as_of=datetime.fromisoformat(m["as_of"]),
                customer_ids=arrays["customer_ids"],
                columns=tuple(m["columns"]),
                matrix=arrays["matrix"],
                categories={k: tuple(v) for k, v in m["categories"].items()},
                offer_ids=tuple(m["offer_ids"]),
                offer_columns=tuple(m["offer_columns"]),
                offer_matrix=arrays["offer_matrix"],
                pair_columns=tuple(m["pair_columns"]),
                pairs=arrays["pairs"],
                features=tuple(Feature.from_dict(f) for f in m["features"]),
            )
        except ArtifactError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ArtifactError(
                where,
                "the profiles cannot be read",
                got=f"{type(error).__name__}: {error}",
                action="Run `nextbest refresh` to build them again.",
            ) from None
        n, m_ = profiles.customer_ids.size, len(profiles.offer_ids)
        shapes = (
            (profiles.customer_ids.shape, (n,)),
            (profiles.matrix.shape, (n, len(profiles.columns))),
            (profiles.offer_matrix.shape, (m_, len(profiles.offer_columns))),
            (profiles.pairs.shape, (n, m_, len(profiles.pair_columns))),
        )
        for got, expected in shapes:
            if got != expected:
                raise ArtifactError(
                    where, "an array has the wrong shape", expected=str(expected), got=str(got)
                )
        kinds = [arrays[name].dtype.kind for name in _ARRAYS]
        if kinds != ["S", "f", "f", "f"]:
            raise ArtifactError(
                where, "an array has the wrong type", expected="bytes and numbers", got=str(kinds)
            )
        return profiles


def from_frames(
    frames: ProfileFrames,
    scores: Mapping[str, Array],
    version: str,
    score_features: Sequence[Feature],
) -> Profiles:
    """Lay out profile frames and the customers' scores as arrays.

    Parameters
    ----------
    frames : as returned by `nextbest.data.snapshots.profile`.
    scores : score column name to (n,) values, in the frames' customer order.
    version : name of this set of profiles.
    score_features : what each score column means.
    """
    customers = frames.customers
    described = {f.name: f for f in frames.features}
    names = {
        e: [f.name for f in frames.features if f.entity == e] for e in ("customer", "offer", "pair")
    }
    categories: dict[str, tuple[str, ...]] = {}

    def matrix(frame: pd.DataFrame, columns: Sequence[str]) -> Array:
        out = np.empty((len(frame), len(columns)))
        for j, name in enumerate(columns):
            if described[name].dtype == "string":
                known = frame[name].notna()
                texts = frame.loc[known, name].astype(str)
                categories[name] = tuple(sorted(set(texts)))
                codes = {v: float(i) for i, v in enumerate(categories[name])}
                out[:, j] = np.nan
                out[known.to_numpy(), j] = [codes[v] for v in texts]
            else:
                out[:, j] = frame[name].to_numpy(dtype=np.float64)
        return out

    base = matrix(customers, names["customer"])
    values = np.column_stack([base, *scores.values()]) if scores else base
    ids = np.array([str(c).encode() for c in customers["customer_id"]], dtype=np.bytes_)
    order = np.argsort(ids, kind="stable")
    if len(ids) and (ids[order][1:] == ids[order][:-1]).any():
        raise DataError("profiles", "a customer appears twice", expected="one row per customer")
    offer_ids = tuple(str(o) for o in frames.offers["offer_id"]) if len(frames.offers) else ()
    m = len(offer_ids)
    pairs = matrix(frames.pairs, names["pair"]).reshape(len(ids), m, len(names["pair"]))
    return Profiles(
        version=version,
        as_of=frames.as_of,
        customer_ids=ids[order],
        columns=(*names["customer"], *scores),
        matrix=values[order],
        categories=categories,
        offer_ids=offer_ids,
        offer_columns=tuple(names["offer"]),
        offer_matrix=matrix(frames.offers, names["offer"]) if m else np.empty((0, 0)),
        pair_columns=tuple(names["pair"]),
        pairs=pairs[order],
        features=(*frames.features, *score_features),
    )


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
