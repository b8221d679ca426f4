"""Functions compiled by Numba, where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import numba
except ImportError:  # an installation without it decides as well, only slower
    numba = None

__all__ = ["available", "compiled", "inlined"]

Wrapper = Callable[[Callable[..., Any]], Any]


def available() -> bool:
    """Say whether functions can be compiled here."""
    return numba is not None and not numba.config.DISABLE_JIT


def compiled(signature: Any, *, nogil: bool = False) -> Wrapper:
    """Compile for one signature when the module loads, or read what was compiled before.

    Numba keeps its cache beside the function's file; where it may not write there, in the user's
    own cache folder, or where ``NUMBA_CACHE_DIR`` says. Where none can be written it compiles at
    each start. Only for where `available` is true.

    Parameters
    ----------
    signature : Numba's types, or their names.
    nogil : let go of the interpreter's lock meanwhile, which pays from a tenth of a millisecond on:
        whoever takes it may keep it for long.
    """

    def wrap(function: Callable[..., Any]) -> Any:
        options: dict[str, Any] = {"nogil": nogil, "error_model": "numpy"}
        try:
            return numba.njit(signature, cache=True, **options)(function)
        except (RuntimeError, OSError):
            return numba.njit(signature, **options)(function)

    return wrap


def inlined(function: Callable[..., Any]) -> Any:
    """Make a function part of each compiled one that calls it."""
    return numba.njit(error_model="numpy", inline="always")(function)
