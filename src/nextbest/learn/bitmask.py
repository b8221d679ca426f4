"""Trees scored for customers x offers with one machine word for each tree, compiled.

The reachable leaves of a tree are the bits of one word. Every split clears the leaves that its
answer rules out: splits on offer columns once for a catalogue, splits on customer columns once for
a customer, splits on customer x offer columns for each offer, and those only where the customer
leaves them reachable. One bit is left, the exit leaf. After QuickScorer (Lucchese et al. 2015,
"QuickScorer: a fast algorithm to rank documents with additive ensembles of regression trees").

Leaf values are added tree by tree as LightGBM adds them, so that the sums have the same bits.
This is the one module of the room that knows Numba; without it `available` is false.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from nextbest.learn.compiling import Wrapper, available, compiled, inlined
from nextbest.learn.forest import CATEGORICAL, MISSING_LEFT, ZERO, ZERO_IS_MISSING, Forest, Nodes

__all__ = ["Catalogue", "RowScorer", "TreeScorer", "available", "sum_terms"]

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]

try:
    import numba
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic
except ImportError:  # see `nextbest.learn.compiling`
    numba = None


# ------------------------------------------------------------------ kernels


if available():
    _F1 = types.Array(types.float64, 1, "C", readonly=True)
    _F2 = types.Array(types.float64, 2, "C", readonly=True)
    _F3 = types.Array(types.float64, 3, "C", readonly=True)
    _I1 = types.Array(types.int32, 1, "C", readonly=True)
    _I2 = types.Array(types.int32, 2, "C", readonly=True)
    _U1 = types.Array(types.uint64, 1, "C", readonly=True)
    _U2 = types.Array(types.uint64, 2, "C", readonly=True)
    _B1 = types.Array(types.uint32, 1, "C", readonly=True)
    _W2 = types.Array(types.uint32, 2, "C", readonly=True)
    _NODES = (_I1, _F1, _U2, _W2, _B1)
    _PLAIN = (_I1, _I1, _F1, _U1, _U1)
    _intrinsic: Wrapper = intrinsic

    @_intrinsic
    def _lowest_bit(typing_context: Any, word: Any) -> Any:
        """Number of the lowest bit that is set in a word that is not 0."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

        return types.int64(types.uint64), generate

    @inlined
    def _goes_left(x: float, threshold: float, flags: int) -> Any:
        missing = (x != x) | ((x == 0.0) & ((flags & ZERO_IS_MISSING) != 0))
        return (flags & MISSING_LEFT) != 0 if missing else x <= threshold

    @inlined
    def _in_set(x: float, bits: Any, first: int, last: int) -> Any:
        # Fractions are cut off; what LightGBM's int cannot hold is in no set.
        if not (-1.0 < x < 2147483648.0):
            return False
        category = np.int64(x)
        word = first + (category >> 5)
        if word >= last:
            return False
        return ((bits[word] >> np.uint32(category & 31)) & np.uint32(1)) != 0

    @inlined
    def _snapped(x: float) -> float:
        return 0.0 if -ZERO <= x <= ZERO else x

    @inlined
    def _answer(x: float, a: int, threshold: Any, keep: Any, meta: Any, bits: Any) -> Any:
        """Leaves that split a leaves reachable for the value x."""
        flags = meta[a, 2]
        if flags & CATEGORICAL:
            left = _in_set(x, bits, meta[a, 3], meta[a, 4])
        else:
            left = _goes_left(x, threshold[a], flags)
        return keep[a, 1] if left else keep[a, 0]

    @inlined
    def _narrow(
        reach: Any, x: Any, kept: Any,
        start: Any, place: Any, threshold: Any, left: Any, right: Any,
        s_threshold: Any, s_keep: Any, s_meta: Any, s_bits: Any,
    ) -> None:  # fmt: skip
        """Leave in each tree the leaves that one row of values can reach.

        All plain splits are answered before any tree is looked at: a loop without a branch, or a
        sum that waits for the one before, which the compiler makes of it a few at a time.
        """
        for a in range(np.uint64(len(threshold))):
            if_left, if_right = left[a], right[a]
            kept[a] = if_left if x[np.uint64(place[a])] <= threshold[a] else if_right
        for t in range(np.uint64(len(reach))):
            leaves = reach[t]
            for a in range(np.uint64(start[t]), np.uint64(start[t + 1])):
                leaves &= kept[a]
            reach[t] = leaves
        for a in range(np.uint64(len(s_threshold))):
            value = x[2 * s_meta[a, 1]]
            reach[s_meta[a, 0]] &= _answer(value, a, s_threshold, s_keep, s_meta, s_bits)

    @inlined
    def _spread(x: Any, row: Any) -> None:
        """Put a row's values where splits find them: each twice, see `_plain`."""
        for k in range(len(row)):
            value = _snapped(row[k])
            x[2 * k] = value
            x[2 * k + 1] = -np.inf if value != value else value

    @compiled(types.uint64[:, ::1](_U1, *_PLAIN, *_NODES, _F2), nogil=True)
    def _fold(
        full: Any,
        start: Any, place: Any, threshold: Any, left: Any, right: Any,
        _s_start: Any, s_threshold: Any, s_keep: Any, s_meta: Any, s_bits: Any,
        rows: Any,
    ) -> Any:  # fmt: skip
        """Leaves of each tree (rows, trees) that each row of values can reach."""
        out = np.empty((len(rows), len(full)), np.uint64)
        x = np.empty(2 * rows.shape[1])
        kept = np.empty(len(threshold), np.uint64)
        for j in range(len(rows)):
            _spread(x, rows[j])
            reach = out[j]
            reach[:] = full
            _narrow(
                reach, x, kept, start, place, threshold, left, right,
                s_threshold, s_keep, s_meta, s_bits,
            )  # fmt: skip
        return out

    @compiled(
        types.float64[:, ::1](
            _F2, _F3, types.int64, *_PLAIN, *_NODES, *_NODES, _I1, _F1, _U1, _U2, _I1, _U1, _I2
        ),
        nogil=True,
    )
    def _sums(
        customers: Any, pairs: Any, m: int,
        start: Any, place: Any, c_threshold: Any, left: Any, right: Any,
        _s_start: Any, s_threshold: Any, s_keep: Any, s_meta: Any, s_bits: Any,
        p_start: Any, p_threshold: Any, p_keep: Any, p_meta: Any, p_bits: Any,
        leaf_start: Any, leaf_value: Any, union: Any,
        masks: Any, class_start: Any, class_mask: Any, class_of: Any,
    ) -> Any:  # fmt: skip
        """Sum the trees (n, m) in their order."""
        n, n_pair, trees = len(customers), pairs.shape[2], np.uint64(len(masks))
        out = np.zeros((n, m))
        x = np.empty(2 * customers.shape[1])
        kept = np.empty(len(c_threshold), np.uint64)
        cells = np.empty((n_pair, m))
        left_open = np.empty(len(masks), np.uint64)
        reach = np.empty(m, np.uint64)
        value = np.empty(masks.shape[1])
        for i in range(n):
            _spread(x, customers[i])
            for k in range(n_pair):
                for j in range(m):
                    cells[k, j] = _snapped(pairs[i, j, k])
            left_open[:] = union
            _narrow(
                left_open, x, kept, start, place, c_threshold, left, right,
                s_threshold, s_keep, s_meta, s_bits,
            )  # fmt: skip
            total = out[i]
            for t in range(trees):
                mask = left_open[t]
                base = leaf_start[t]
                split = False
                for a in range(np.uint64(p_start[t]), np.uint64(p_start[t + 1])):
                    right_keeps, left_keeps = p_keep[a, 0], p_keep[a, 1]
                    # Both sides reachable, or the answer changes nothing.
                    if (mask & ~right_keeps) == 0 or (mask & ~left_keeps) == 0:
                        continue
                    if not split:
                        split = True
                        for j in range(m):
                            reach[j] = masks[t, j] & mask
                    k, flags, threshold = p_meta[a, 1], p_meta[a, 2], p_threshold[a]
                    if flags & ~MISSING_LEFT:
                        for j in range(m):
                            reach[j] &= _answer(cells[k, j], a, p_threshold, p_keep, p_meta, p_bits)
                    elif flags & MISSING_LEFT:
                        for j in range(m):
                            reach[j] &= right_keeps if cells[k, j] > threshold else left_keeps
                    else:
                        for j in range(m):
                            reach[j] &= left_keeps if cells[k, j] <= threshold else right_keeps
                if split:
                    for j in range(m):
                        total[j] += leaf_value[base + _lowest_bit(reach[j])]
                    continue
                if (mask & (mask - np.uint64(1))) == 0:
                    # The customer alone decides: one leaf is left, whatever the offer.
                    found = leaf_value[base + _lowest_bit(mask)]
                    for j in range(m):
                        total[j] += found
                    continue
                first = np.uint64(class_start[t])
                for c in range(np.uint64(class_start[t + 1]) - first):
                    value[c] = leaf_value[base + _lowest_bit(class_mask[first + c] & mask)]
                for j in range(m):
                    total[j] += value[np.uint64(class_of[t, j])]
        return out

    @inlined
    def _block(terms: Any, first: int, n: int) -> Any:
        """Add up at most 128 terms as NumPy does: in eights."""
        if n < 8:
            total = 0.0
            for i in range(first, first + n):
                total += terms[i]
            return total
        r0, r1, r2, r3 = terms[first], terms[first + 1], terms[first + 2], terms[first + 3]
        r4, r5, r6, r7 = terms[first + 4], terms[first + 5], terms[first + 6], terms[first + 7]
        end = first + n - n % 8
        for i in range(first + 8, end, 8):
            r0 += terms[i]
            r1 += terms[i + 1]
            r2 += terms[i + 2]
            r3 += terms[i + 3]
            r4 += terms[i + 4]
            r5 += terms[i + 5]
            r6 += terms[i + 6]
            r7 += terms[i + 7]
        total = ((r0 + r1) + (r2 + r3)) + ((r4 + r5) + (r6 + r7))
        for i in range(end, first + n):
            total += terms[i]
        return total

    @compiled(types.float64[:, ::1](_F2, _F2, _F3, _I1, _I1, _I1, _I2), nogil=True)
    def _sum_terms(
        customers: Any, offers: Any, pairs: Any, c_at: Any, o_at: Any, p_at: Any, plan: Any
    ) -> Any:
        n, m = len(customers), len(offers)
        out = np.empty((n, m))
        row = np.empty(len(c_at) + len(o_at) + len(p_at))
        stack = np.empty(len(plan))
        for i in range(n):
            for k in range(len(c_at)):
                row[c_at[k]] = customers[i, k]
            for j in range(m):
                for k in range(len(o_at)):
                    row[o_at[k]] = offers[j, k]
                for k in range(len(p_at)):
                    row[p_at[k]] = pairs[i, j, k]
                top = 0
                for b in range(len(plan)):
                    stack[top] = _block(row, plan[b, 0], plan[b, 1])
                    for _merge in range(plan[b, 2]):
                        top -= 1
                        stack[top] += stack[top + 1]
                    top += 1
                out[i, j] = stack[0]
        return out


# ------------------------------------------------------------------ what others call


@dataclass(frozen=True, eq=False)
class Catalogue:
    """What m offers leave reachable in each tree.

    Attributes: ``masks`` (trees, m); ``union`` (trees,) what any offer leaves; ``class_of``
    (trees, m) groups offers that leave the same, ``class_mask`` from ``class_start[t]`` on.
    """

    masks: npt.NDArray[np.uint64]
    union: npt.NDArray[np.uint64]
    class_start: Ints
    class_mask: npt.NDArray[np.uint64]
    class_of: Ints


class TreeScorer:
    """A forest whose columns come from customers, offers and customer x offer pairs.

    Parameters: ``customer``, ``offer``, ``pair`` give for each column of the forest its position
    among the columns of that matrix, or -1.
    """

    def __init__(self, forest: Forest, customer: Ints, offer: Ints, pair: Ints) -> None:
        self._forest = forest
        self._customer = _parted(forest.nodes.of_columns(customer))
        self._offer = _parted(forest.nodes.of_columns(offer))
        self._pair = _arrays(forest.nodes.of_columns(pair))

    def fold(self, offers: Array) -> Catalogue:
        """Answer every split on offer columns for the (m, k_o) offers of a catalogue."""
        masks = _fold(self._forest.full, *self._offer, np.ascontiguousarray(offers))
        masks = np.ascontiguousarray(masks.T)
        found = [np.unique(row, return_inverse=True) for row in masks]
        start = np.cumsum([0, *(len(words) for words, _of in found)])
        return Catalogue(
            masks,
            np.bitwise_or.reduce(masks, axis=1),
            start.astype(np.int32),
            np.concatenate([np.zeros(0, np.uint64), *(words for words, _of in found)]),
            np.array([of for _words, of in found], np.int32).reshape(masks.shape),
        )

    def predict(self, customers: Array, catalogue: Catalogue, pairs: Array) -> Array:
        """Return the (n, m) predictions for (n, k) customers and (n, m, k_p) pairs.

        Bit for bit those of ``Booster.predict(num_threads=1)`` on the joined rows.
        """
        forest = self._forest
        sums = _sums(
            np.ascontiguousarray(customers), np.ascontiguousarray(pairs), pairs.shape[1],
            *self._customer, *self._pair,
            forest.leaf_start, forest.leaf_value, catalogue.union,
            catalogue.masks, catalogue.class_start, catalogue.class_mask, catalogue.class_of,
        )  # fmt: skip
        if forest.divisor != 1.0:
            sums /= forest.divisor
        return np.asarray(sums if forest.sigmoid is None else expit(forest.sigmoid * sums))


class RowScorer:
    """A forest scored for plain rows: as if each were an offer with all columns of its own."""

    _BLOCK: Final = 128  # rows whose values stay near the processor

    def __init__(self, forest: Forest) -> None:
        nothing = np.full(forest.n_columns, -1, np.int32)
        everything = np.arange(forest.n_columns, dtype=np.int32)
        self._scorer = TreeScorer(forest, nothing, nothing, everything)
        self._block = self._scorer.fold(np.empty((self._BLOCK, 0)))

    def predict(self, x: Array) -> Array:
        """Return the (n,) predictions for an (n, k) matrix, as `TreeScorer.predict`."""
        out = np.empty(len(x))
        nobody = np.empty((1, 0))
        for start in range(0, len(x), self._BLOCK):
            rows = slice(start, start + self._BLOCK)
            out[rows] = self._scorer.predict(nobody, self._block, x[None, rows])[0]
        return out


def _arrays(nodes: Nodes) -> tuple[Any, ...]:
    return nodes.start, nodes.threshold, nodes.keep, nodes.meta, nodes.bits


def _parted(nodes: Nodes) -> tuple[Any, ...]:
    """The plain splits as `_narrow` takes them, then the others, which need a second look."""
    plain, others = nodes.parted()
    return *_plain(plain), *_arrays(others)


def _plain(nodes: Nodes) -> tuple[Any, ...]:
    """Where each tree's splits begin; each one's place, threshold, and what left and right keep.

    The value of column k stands at 2 k as it is, where an unknown one (NaN) is never at most the
    threshold and goes right, and at 2 k + 1 with -inf in place of it, which always goes left.
    """
    place = 2 * nodes.meta[:, 1] + (nodes.meta[:, 2] == MISSING_LEFT)
    right, left = np.ascontiguousarray(nodes.keep.T)
    return nodes.start, place.astype(np.int32), nodes.threshold, left, right


def sum_terms(
    customers: Array, offers: Array, pairs: Array, places: tuple[Ints, Ints, Ints]
) -> Array:
    """Return (n, m): the sum of each joined row's terms, with the bits of NumPy's row sum.

    Parameters: ``customers`` (n, k), ``offers`` (m, k_o), ``pairs`` (n, m, k_p); ``places`` where
    the columns of each stand in the joined row.
    """
    return np.asarray(
        _sum_terms(
            np.ascontiguousarray(customers),
            np.ascontiguousarray(offers),
            np.ascontiguousarray(pairs),
            *places,
            _halving(sum(len(at) for at in places)),
        )
    )


@cache
def _halving(n: int) -> Ints:
    """How NumPy halves a sum of n terms: first term, terms, and sums to merge after each block."""

    def blocks(first: int, size: int) -> list[list[int]]:
        if size <= 128:
            return [[first, size, 0]]
        half = size // 2
        half -= half % 8
        found = [*blocks(first, half), *blocks(first + half, size - half)]
        found[-1][2] += 1
        return found

    return np.array(blocks(0, n), np.int32)


def _warm() -> None:
    """Run every kernel once, so that what Numba sets up at a first call is done at the start."""
    no_nodes = Nodes(
        np.zeros(2, np.int32), np.empty(0), np.zeros((0, 2), np.uint64),
        np.zeros((0, 5), np.uint32), np.zeros(0, np.uint32),
    )  # fmt: skip
    one_leaf = Forest(
        0, no_nodes, np.array([0, 1], np.int32), np.zeros(1), np.ones(1, np.uint64), 1.0, None
    )
    RowScorer(one_leaf).predict(np.empty((1, 0)))
    nothing = np.zeros(0, np.int32)
    sum_terms(np.empty((1, 0)), np.empty((1, 0)), np.empty((1, 1, 0)), (nothing,) * 3)


if available():
    _warm()
