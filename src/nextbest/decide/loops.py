"""The two steps with most of the arithmetic, each as one compiled loop over customers x offers.

A group of sixteen has so few numbers that NumPy takes longer to be called than to compute. What
these loops do is written in NumPy beside them, for policies that ask for more and for an
installation without Numba: `ChannelLimits.count` with `Counts.reached`, and `arbitrate.choose`
with `explore.Explorer`. Both ways give the same bits: every sum runs from left to right.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nextbest.learn.compiling import available, compiled

__all__ = ["available", "choose_one", "keep_back"]


if available():

    @compiled(
        "void(int16[:,::1], int64[:], int64[:], int64[:], int64[:], int64[:],"
        "int64[:], int64[:], int64, boolean[:,:], int64[:,:], int64,"
        "int64[:], int64[:,:], int64[:], int64[:], int16[:])"
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

    @compiled(
        "void(int64[:,::1], float64[:,::1], float64[:,::1], int64[:,::1],"
        "int16[:,::1], float64[:,::1], int64[:], boolean[:], float64[:],"
        "float64, float64, float64[:,:], int16[:], int16, int16, int16)"
    )
    def choose_one(
        chosen: Any, probability: Any, chances: Any, best: Any,
        fates: Any, worth: Any, order: Any, explored: Any, lots: Any,
        epsilon: float, share: float, profit: Any,
        made: Any, outranked: int, not_drawn: int, nothing_to_gain: int,
    ) -> None:  # fmt: skip
        """Draw one offer or none for each customer, and write the fate of all that were open.

        Parameters: what to write, as `arbitrate.Choice` has it, ``chosen`` (n, 1), ``probability``
        (n, 1), ``chances`` (n, m + 1) and ``best`` (n, 1); ``fates`` (n, m); ``worth`` (n, m), -inf where an offer is out; ``order`` (m,)
        positions of the offers in the order of their ids; ``explored`` (n,) for whom part is left
        to chance, and ``lots`` (n,); ``epsilon`` how much; ``share`` of the ``profit`` (n, m) that
        this may cost (below 0: any); ``made`` (n,) the fate of the offer that is chosen; the other
        fates.
        """
        n, m = worth.shape
        leading, vector, earned = np.zeros(m + 1), np.empty(m + 1), np.empty(m)
        for i in range(n):
            leader, highest = m, 0.0
            for k in range(m):
                if worth[i, order[k]] > highest:
                    leader, highest = k, worth[i, order[k]]
            leading[leader] = 1.0
            if explored[i]:
                possible = 1.0  # no offer is
                for j in range(m):
                    if np.isfinite(worth[i, j]):
                        possible += 1.0
                each = epsilon * (1.0 / possible)
                for k in range(m):
                    free = each if np.isfinite(worth[i, order[k]]) else 0.0
                    vector[k] = free + (1.0 - epsilon) * leading[k]
                vector[m] = each + (1.0 - epsilon) * leading[m]
                if share >= 0.0:
                    for k in range(m):
                        amount = profit[i, order[k]]
                        earned[k] = amount if np.isfinite(amount) else 0.0
                    best_earns = leading[0] * earned[0]
                    earns = vector[0] * earned[0]
                    for k in range(1, m):
                        best_earns += leading[k] * earned[k]
                        earns += vector[k] * earned[k]
                    loses, may_lose = best_earns - earns, share * max(best_earns, 0.0)
                    if loses > may_lose:
                        weight = may_lose / loses
                        for k in range(m + 1):
                            vector[k] = (1.0 - weight) * leading[k] + weight * vector[k]
            else:
                vector[:] = leading
            leading[leader] = 0.0
            total = vector[0]
            for k in range(1, m + 1):
                total += vector[k]
            lot, drawn, so_far = lots[i] * total, 0, vector[0]
            while drawn < m and not so_far > lot:
                drawn += 1
                so_far += vector[drawn]
            if not so_far > lot:
                drawn = 0
            for k in range(m):
                chances[i, order[k]] = vector[k]
            chances[i, m] = vector[m]
            probability[i, 0] = vector[drawn]
            chosen[i, 0] = order[drawn] if drawn < m else -1
            best[i, 0] = order[leader] if leader < m else -1
            last = 0.0
            if drawn < m:
                last = worth[i, order[drawn]]
                fates[i, order[drawn]] = made[i]
            for j in range(m):
                if fates[i, j] == 0:
                    if worth[i, j] <= 0.0:
                        fates[i, j] = nothing_to_gain
                    elif worth[i, j] <= last:
                        fates[i, j] = outranked
                    else:
                        fates[i, j] = not_drawn
