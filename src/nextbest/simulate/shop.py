"""One simulated shop: people with hidden traits, and the history that these traits produce.

A customer buys from each category by a Poisson process. Within the window of an offer, the first
purchase of a contacted customer is the response. A contact adds at most one purchase, and only
where there would have been none: so P(response | contact) = 1 - (1 - p0) (1 - u), where p0 is the
probability of a purchase unasked and u that of being persuaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from nextbest.errors import UsageError
from nextbest.simulate.truth import Truth
from nextbest.simulate.worlds import CYCLE_DAYS, OFFERS, WINDOW_DAYS, Offer, World

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Shop"]

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

START: Final = datetime(2023, 1, 2)
CHANNEL: Final = "mail"
#: Share of those who agree to letters that a mailing goes to; who, and which offer, is drawn.
CONTACTED: Final = 0.6
CONSENTING: Final = 0.9
# Two mailings to learn from, two to test on, and a cycle before them.
_LEAST_DAYS: Final = 5 * CYCLE_DAYS


@dataclass(frozen=True)
class Shop:
    """A shop with known truth; the same arguments always give the same shop.

    Parameters
    ----------
    world : what customers do and what contacts change.
    customers : how many.
    days : length of the history; a multiple of 28.
    seed : of everything that is drawn.
    offers : what there is to buy and to offer.
    """

    world: World
    customers: int
    days: int
    seed: int
    offers: tuple[Offer, ...] = OFFERS

    def __post_init__(self) -> None:
        if self.customers < 1:
            raise UsageError("--customers", "nobody to simulate", expected="1 or more",
                             got=str(self.customers))  # fmt: skip
        if self.days < _LEAST_DAYS or self.days % CYCLE_DAYS:
            raise UsageError(
                "--days", "the history does not hold whole cycles of mailings",
                expected=f"a multiple of {CYCLE_DAYS} from {_LEAST_DAYS} up", got=str(self.days),
            )  # fmt: skip
        if self.seed < 0:
            raise UsageError("--seed", "it is negative", expected="0 or more", got=str(self.seed))

    # ------------------------------------------------------------------ people

    def _draws(self, what: int) -> np.random.Generator:
        """One stream for each purpose, so that worlds of one seed share their people."""
        return np.random.default_rng([self.seed, what])

    @property
    def until(self) -> datetime:
        """The end of the history, and the moment of the decision (naive UTC)."""
        return START + timedelta(days=self.days)

    @cached_property
    def customer_ids(self) -> tuple[str, ...]:
        """Ids, in the order of every array's rows."""
        width = len(str(self.customers - 1))
        return tuple(f"c{i:0{width}d}" for i in range(self.customers))

    @cached_property
    def rates(self) -> Array:
        """(n, m) purchases per day of each category, on the first day, of people left alone."""
        draws = self._draws(0)
        activity = draws.gamma(1.5, 1 / 1.5, (self.customers, 1))
        taste = draws.dirichlet([4 * o.share for o in self.offers], self.customers)
        found: Array = self.world.orders_per_year / 365 * activity * taste
        return found

    @cached_property
    def openness(self) -> Array:
        """(n,) how easily each customer is persuaded, in standard deviations."""
        return self._draws(1).standard_normal(self.customers)

    @cached_property
    def persuasion(self) -> Array:
        """(n, m) probability that a contact persuades who would not have bought, at level 1."""
        world = self.world
        if not world.persuasion:
            return np.zeros_like(self.rates)
        liking = self._draws(2).standard_normal(self.rates.shape)
        usual = world.orders_per_year / 365 * self._of_offers("share")
        odds = (
            self._of_offers("appeal")
            + world.spread * (0.8 * self.openness[:, None] + 0.6 * liking)
            - world.loyal_are_deaf * np.log(self.rates / usual + 0.1)
        )
        found: Array = 1 / (1 + np.exp(-odds))
        return found

    @cached_property
    def consent(self) -> npt.NDArray[np.bool_]:
        """(n,) who agrees to letters."""
        return self._draws(3).random(self.customers) < CONSENTING

    # ------------------------------------------------------------------ truth

    @cached_property
    def levels(self) -> Array:
        """(days,) purchases and persuasion on each day, as a share of the first day's."""
        return np.linspace(1.0, self.world.level_at_end, self.days)

    def truth(self, mailing: int | None = None) -> Truth:
        """Return what contacts change at one mailing of the history, or (None) at its end.

        After the end everything stays as on the last day.
        """
        if mailing is None:
            span, level = WINDOW_DAYS * self.levels[-1], self.levels[-1]
        else:
            day = self.mailings[mailing]
            span, level = self.levels[day : day + WINDOW_DAYS].sum(), self.levels[day]
        alone = -np.expm1(-self.rates * span)
        column = {name: self._of_offers(name) for name in ("margin", "incentive_cost")}
        return Truth(
            self.customer_ids,
            tuple(o.id for o in self.offers),
            alone + (1 - alone) * self.persuasion * level,
            alone,
            **column,
            contact_cost=np.full(len(self.offers), self.world.contact_cost),
        )

    # ------------------------------------------------------------------ history

    @cached_property
    def mailings(self) -> Ints:
        """Days of the mailings; the first cycle has none, so that everybody has a past."""
        return np.arange(CYCLE_DAYS, self.days, CYCLE_DAYS)

    @cached_property
    def contacted(self) -> Ints:
        """(n, mailings) the offer that each customer got, by its number; -1 for none."""
        draws, shape = self._draws(4), (self.customers, len(self.mailings))
        offer = draws.integers(0, len(self.offers), shape)
        got = self.consent[:, None] & (draws.random(shape) < CONTACTED)
        return np.where(got, offer, -1)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the history as tables of the data contract, each sorted by time and customer."""
        import pandas as pd

        customer, category, day = self._unasked()
        window = self._windows(day)
        asked = (window >= 0) & (self.contacted[customer, window] == category)
        # Only the first purchase inside a window is the response that takes the discount.
        cell = customer * len(self.mailings) + window
        first = np.full(self.contacted.size, np.inf)
        np.minimum.at(first, cell[asked], day[asked])
        redeemed = asked & (day == first[cell])
        who, mailing, extra = self._persuaded(np.isinf(first).reshape(self.contacted.shape))
        lines = pd.DataFrame({
            "customer": np.concatenate([customer, who]),
            "category": np.concatenate([category, self.contacted[who, mailing]]),
            "day": np.concatenate([day, extra]),
            "mailing": np.concatenate([window, mailing]),
            "redeemed": np.concatenate([redeemed, np.ones(len(who), dtype=bool)]),
        })  # fmt: skip
        lines = lines.sort_values(["day", "customer"], kind="stable", ignore_index=True)
        sold = self._transactions(lines)
        return {
            "customers": self._customers(),
            "transactions": sold,
            "contacts": self._contacts(),
            "responses": self._responses(lines, sold),
            "offers": self._offers(),
        }

    def _unasked(self) -> tuple[Ints, Ints, Array]:
        """Customer, category and day of all purchases that nobody had to be persuaded to."""
        draws = self._draws(5)
        days_at_first_level = np.concatenate([[0.0], np.cumsum(self.levels)])
        counts = draws.poisson(self.rates * days_at_first_level[-1])
        customer, category = (
            np.repeat(at.ravel(), counts.ravel()) for at in np.indices(counts.shape)
        )
        passed = draws.random(len(customer)) * days_at_first_level[-1]
        # A day on which everything is twice as lively passes twice as fast.
        day = np.interp(passed, days_at_first_level, np.arange(self.days + 1))
        return customer, category, day

    def _windows(self, day: Array) -> Ints:
        """The mailing whose window each moment lies in; -1 in a quiet fortnight."""
        cycle = (day // CYCLE_DAYS).astype(np.int64) - 1
        return np.where(day % CYCLE_DAYS < WINDOW_DAYS, np.maximum(cycle, -1), -1)

    def _persuaded(self, without: npt.NDArray[np.bool_]) -> tuple[Ints, Ints, Array]:
        """Customer, mailing and day of the purchases that a contact alone brought about."""
        draws = self._draws(6)
        got = self.contacted
        chance = np.take_along_axis(self.persuasion, np.maximum(got, 0), axis=1)
        chance = chance * self.levels[self.mailings]
        lot, delay = draws.random(got.shape), draws.random(got.shape)
        who, mailing = np.nonzero((got >= 0) & without & (lot < chance))
        return who, mailing, self.mailings[mailing] + delay[who, mailing] * WINDOW_DAYS

    def _customers(self) -> pd.DataFrame:
        import pandas as pd

        draws = self._draws(7)
        noise = draws.standard_normal(self.customers)
        # People who are easily persuaded tend to be young here; the region says nothing.
        age = np.clip(45 - 9 * self.openness + 9 * noise, 18, 95).round()
        region = np.array(["east", "north", "south", "west"])[draws.integers(0, 4, self.customers)]
        return pd.DataFrame({
            "customer_id": self.customer_ids, "age_years": age, "region": region,
            "consent_mail": self.consent,
        })  # fmt: skip

    def _transactions(self, lines: pd.DataFrame) -> pd.DataFrame:
        import pandas as pd

        category = lines["category"].to_numpy()
        price = self._of_offers("price")[category]
        # Prices scatter with mean 1 around the offer's own.
        price = (price * self._draws(8).gamma(25.0, 1 / 25.0, len(lines))).round(2)
        rate = self._of_offers("margin") / self._of_offers("price")
        off = np.where(lines["redeemed"], self._incentives[category], 0.0)
        return pd.DataFrame({
            "customer_id": self._named(lines["customer"]),
            "order_id": [f"o{i}" for i in range(len(lines))],
            "ordered_at": self._moments(lines["day"].to_numpy()),
            "amount": np.maximum(price - off, 0.0).round(2),
            "margin": (price * rate[category] - off).round(4),
            "discount": off,
            "category": self._categories(category),
            "product_id": self._categories(category),
        })  # fmt: skip

    def _contacts(self) -> pd.DataFrame:
        import pandas as pd

        who, mailing = np.nonzero(self.contacted >= 0)
        order = np.lexsort((who, mailing))
        who, mailing = who[order], mailing[order]
        offer = self.contacted[who, mailing]
        return pd.DataFrame({
            "customer_id": self._named(who),
            "offer_id": self._campaign(offer, mailing),
            "contacted_at": self._moments(self.mailings[mailing].astype(np.float64)),
            "channel": CHANNEL,
            "selection_probability": CONTACTED / len(self.offers),
        })  # fmt: skip

    def _responses(self, lines: pd.DataFrame, sold: pd.DataFrame) -> pd.DataFrame:
        import pandas as pd

        at = np.flatnonzero(lines["redeemed"])
        taken = lines.iloc[at]
        category = taken["category"].to_numpy()
        return pd.DataFrame({
            "customer_id": sold["customer_id"].to_numpy()[at],
            "offer_id": self._campaign(category, taken["mailing"].to_numpy()),
            "responded_at": sold["ordered_at"].to_numpy()[at],
            "response_type": "purchase",
            "value": sold["amount"].to_numpy()[at],
            "incentive_cost": self._incentives[category],
        })  # fmt: skip

    def _offers(self) -> pd.DataFrame:
        """Every mailing's offers, and those that are to be decided on now, by their own names."""
        import pandas as pd

        rows = []
        for mailing, day in enumerate([*self.mailings.tolist(), self.days]):
            for offer in self.offers:
                past = day < self.days
                opens = START + timedelta(days=day)
                rows.append({
                    "offer_id": f"{offer.id}-{mailing:02d}" if past else offer.id,
                    "name": f"Money off {offer.id}",
                    "offer_type": offer.id,
                    "category": offer.id,
                    "starts_at": opens,
                    "ends_at": opens + timedelta(days=WINDOW_DAYS),
                    "product_ids": [offer.id],
                    "categories": [offer.id],
                    # Announced when the shop opened: what an offer is, is known before it runs.
                    "known_at": START,
                })  # fmt: skip
        return pd.DataFrame(rows)

    def _of_offers(self, name: str) -> Array:
        return np.array([getattr(o, name) for o in self.offers])

    @cached_property
    def _incentives(self) -> Array:
        return self._of_offers("incentive_cost")

    def _named(self, customer: npt.ArrayLike) -> npt.NDArray[np.object_]:
        ids: npt.NDArray[np.object_] = np.array(self.customer_ids, dtype=object)
        named: npt.NDArray[np.object_] = ids[np.asarray(customer)]
        return named

    def _categories(self, number: Ints) -> npt.NDArray[np.object_]:
        return np.array([o.id for o in self.offers], dtype=object)[number]

    def _campaign(self, offer: Ints, mailing: Ints) -> npt.NDArray[np.object_]:
        names = [[f"{o.id}-{k:02d}" for k in range(len(self.mailings))] for o in self.offers]
        found: npt.NDArray[np.object_] = np.array(names, dtype=object)[offer, mailing]
        return found

    @staticmethod
    def _moments(day: Array) -> npt.NDArray[np.datetime64]:
        micro = np.floor(day * 86_400).astype("timedelta64[s]").astype("timedelta64[us]")
        found: npt.NDArray[np.datetime64] = np.datetime64(START, "us") + micro
        return found
