"""The two steps with most of the arithmetic, each as one compiled loop over customers x offers.

A group of sixteen has so few numbers that NumPy takes longer to be called than to compute. What
these loops do is written in NumPy beside them, for policies that ask for more and for an
installation without Numba: `ChannelLimits.count` with `Counts.reached`, and `arbitrate.choose`
with `explore.Explorer`. Both ways give the same bits: every sum runs from left to right.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nextbest.learn.compiling import available, compiled, inlined

__all__ = ["available", "choose_one", "keep_back"]


if available():

    @compiled(
        "void(int16[:,::1], int64[:], int64[:], int64[:], int64[:], int64[:],"
        "int64[:], int64[:], int64, boolean[:,:], int64[:,:], int64,"
        "int64[:], int64[:,:], int64[:], int64[:], int16[:])",
        nogil=True,
    )
    def keep_back(
        fates: Any, customer: Any, offer: Any, channel: Any, time: Any, kind: Any,
        kinds: Any, since: Any, until: int, wanted: Any, columns: Any, width: int,
        first: Any, pool: Any, own: Any, allowed: Any, codes: Any,
    ) -> None:  # fmt: skip
        """Count past events, and write the fate of offers for which a limit is reached.

        Parameters: ``fates`` (n, m) codes, 0 where an offer is still in the running; the columns
        of a `ContactHistory`; what `ChannelLimits.windows` and `ChannelLimits.pools` return; the
        code of each limit's fate.
        """
        n, m = fates.shape
        table = np.zeros((n, width + 1), np.int64)
        for event in range(len(customer)):
            if time[event] > until:
                continue
            for row in range(len(kinds)):
                counts = kind[event] == kinds[row] and time[event] >= since[row]
                if counts and wanted[row, channel[event]]:
                    table[customer[event], columns[row, offer[event]]] += 1
        for limit in range(len(first)):
            begin, not_counted = first[limit], own[limit]
            for i in range(n):
                for j in range(m):
                    at = pool[limit, j]
                    if at < 0 or fates[i, j] != 0:
                        continue
                    events = table[i, begin + at]
                    if not_counted >= 0:
                        events -= table[i, not_counted + j]
                    if events > allowed[limit]:
                        fates[i, j] = codes[limit]

    @inlined
    def _leader(row: Any, order: Any) -> int:
        """The place, in the order of the ids, of the best offer; behind the last where none is."""
        leader, highest = len(order), 0.0
        for k in range(len(order)):
            if row[order[k]] > highest:
                leader, highest = k, row[order[k]]
        return leader

    @inlined
    def _explore(vector: Any, leading: Any, row: Any, order: Any, epsilon: float) -> None:
        """As `explore.epsilon`: some probability to each that is in the running, and to none."""
        m, possible = len(order), 1.0
        for j in range(m):
            if np.isfinite(row[j]):
                possible += 1.0
        each = epsilon * (1.0 / possible)
        for k in range(m):
            free = each if np.isfinite(row[order[k]]) else 0.0
            vector[k] = free + (1.0 - epsilon) * leading[k]
        vector[m] = each + (1.0 - epsilon) * leading[m]

    @inlined
    def _guard(vector: Any, leading: Any, profit: Any, order: Any, share: float) -> None:
        """As `explore.guard`: mix the leader in, until the rest costs no more than a share."""
        best, earned = 0.0, 0.0
        for k in range(len(order)):
            amount = profit[order[k]] if np.isfinite(profit[order[k]]) else 0.0
            best += leading[k] * amount
            earned += vector[k] * amount
        loses, may_lose = best - earned, share * max(best, 0.0)
        if loses > may_lose:
            weight = may_lose / loses
            for k in range(len(vector)):
                vector[k] = (1.0 - weight) * leading[k] + weight * vector[k]

    @inlined
    def _draw(vector: Any, lot: float) -> int:
        """As `arbitrate.choose`: the first place at which the probabilities so far pass the lot."""
        total = 0.0
        for k in range(len(vector)):
            total += vector[k]
        so_far = 0.0
        for k in range(len(vector)):
            so_far += vector[k]
            if so_far > lot * total:
                return k
        return 0

    @compiled(
        "void(int64[:,::1], float64[:,::1], float64[:,::1], int64[:,::1],"
        "int16[:,::1], float64[:,::1], int64[:], boolean[:], float64[:],"
        "float64, float64, float64[:,:], int16[:], int16, int16, int16)",
        nogil=True,
    )
    def choose_one(
        chosen: Any, probability: Any, chances: Any, best: Any,
        fates: Any, worth: Any, order: Any, explored: Any, lots: Any,
        epsilon: float, share: float, profit: Any,
        made: Any, outranked: int, not_drawn: int, nothing_to_gain: int,
    ) -> None:  # fmt: skip
        """Draw one offer or none for each customer, and write the fate of all that were open.

        Parameters: what to write, as `arbitrate.Choice` has it: ``chosen``, ``probability`` and
        ``best`` (n, 1), ``chances`` (n, m + 1); and into ``fates`` (n, m). ``worth`` (n, m), -inf
        where an offer is out; ``order`` (m,) the offers in the order of their ids; ``explored``
        (n,) for whom a share ``epsilon`` is left to chance, and their ``lots`` (n,); ``share`` of
        the ``profit`` (n, m) that this may cost at most (below 0: any). ``made`` (n,) the fate of
        the offer that is chosen, then those of others.
        """
        n, m = worth.shape
        leading, vector = np.zeros(m + 1), np.empty(m + 1)
        for i in range(n):
            leader = _leader(worth[i], order)
            leading[leader] = 1.0
            if explored[i]:
                _explore(vector, leading, worth[i], order, epsilon)
                if share >= 0.0:
                    _guard(vector, leading, profit[i], order, share)
            else:
                vector[:] = leading
            leading[leader] = 0.0
            drawn = _draw(vector, lots[i])
            for k in range(m):
                chances[i, order[k]] = vector[k]
            chances[i, m] = vector[m]
            probability[i, 0] = vector[drawn]
            best[i, 0] = order[leader] if leader < m else -1
            chosen[i, 0], last = -1, 0.0
            if drawn < m:
                chosen[i, 0], last = order[drawn], worth[i, order[drawn]]
                fates[i, order[drawn]] = made[i]
            for j in range(m):
                if fates[i, j] == 0:
                    if worth[i, j] <= 0.0:
                        fates[i, j] = nothing_to_gain
                    else:
                        fates[i, j] = outranked if worth[i, j] <= last else not_drawn
