"""The file of a batch: decisions as rows, in Parquet or CSV, there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from nextbest.errors import StoreError, UsageError

__all__ = ["Table", "appending"]

# So many rows are written together: who reads the file decodes and skips whole groups.
ROW_GROUP = 65_536

Table = Mapping[str, np.ndarray[Any, Any]]
Write = Callable[[Table], None]

_ARROW = {
    "O": pa.string(),
    "f": pa.float64(),
    "i": pa.int64(),
    "b": pa.bool_(),
    "M": pa.timestamp("us", tz="UTC"),
}
# Columns whose values come again and again. Of values that are all different a dictionary is made
# in vain, and takes longer than to write them.
_REPEATED = [
    "arm", "catalogue_hash", "channel", "no_offer_because", "offer_id", "placement", "policy_hash",
    "rank",
]  # fmt: skip


@contextmanager
def appending(out: Path | None) -> Iterator[Write]:
    """Give a function that appends columns to the file; the file appears at the end, whole."""
    if out is None:
        yield lambda _: None
        return
    suffix = out.suffix.lower()
    if suffix not in (".parquet", ".csv"):
        raise UsageError(
            "--out",
            "the kind of file is not known",
            expected="a name that ends in .parquet or .csv",
            got=str(out),
        )
    if out.is_dir():
        raise UsageError("--out", "there is a folder of this name", got=str(out))
    draft = out.with_name(f".{out.name}-{uuid4().hex}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("xb") as sink, closing(_ArrowFile(sink, suffix)) as file:
            yield file.append
        draft.replace(out)
    except OSError as error:
        raise StoreError(
            str(out),
            "the file cannot be written",
            got=error.strerror or str(error),
            action="Choose another place with --out, or check permissions and disk space",
        ) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


class _ArrowFile:
    """A Parquet or CSV file that grows by tables of the same columns."""

    def __init__(self, sink: Any, suffix: str) -> None:
        self._sink = sink
        parquet = partial(pa.parquet.ParquetWriter, use_dictionary=_REPEATED)
        self._open = parquet if suffix == ".parquet" else pa.csv.CSVWriter
        self._file: Any = None
        self._waiting: list[pa.Table] = []

    def append(self, columns: Table) -> None:
        """Add rows; NaN and None become null."""
        schema = pa.schema([(name, _ARROW[v.dtype.kind]) for name, v in columns.items()])
        arrays = [
            pa.array(values, type=kind, from_pandas=True)
            for values, kind in zip(columns.values(), schema.types, strict=True)
        ]
        self._waiting.append(pa.Table.from_arrays(arrays, schema=schema))
        if sum(map(len, self._waiting)) >= ROW_GROUP:
            self._write()

    def _write(self) -> None:
        together = pa.concat_tables(self._waiting)
        if self._file is None:
            self._file = self._open(self._sink, together.schema)
        self._file.write_table(together)
        self._waiting = []

    def close(self) -> None:
        """Finish the file."""
        if self._waiting:
            self._write()
        if self._file is not None:
            self._file.close()
