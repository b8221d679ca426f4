"""Fixtures of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import ibis
import ibis.config
import pytest


@pytest.fixture
def spark_options() -> Iterator[None]:
    """Give Ibis the options that its Spark backend registers where pyspark is installed."""

    class Options(ibis.config.Config):
        treat_nan_as_null: bool = False

    before = ibis.options.pyspark
    ibis.options.pyspark = Options()
    yield
    ibis.options.pyspark = before
