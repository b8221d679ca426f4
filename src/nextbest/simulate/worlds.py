"""The worlds: what differs from one simulated shop to the next, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from nextbest.errors import UsageError, did_you_mean

__all__ = ["CYCLE_DAYS", "OFFERS", "WINDOW_DAYS", "WORLDS", "Offer", "World", "world_of"]

#: A mailing every so many days; its offers run for half of them, and the other half is quiet, so
#: that the history also shows what people buy unasked.
CYCLE_DAYS: Final = 28
WINDOW_DAYS: Final = 14


@dataclass(frozen=True)
class Offer:
    """An offer for one category; money in the shop's currency, per customer.

    Attributes
    ----------
    price, margin : mean price of a purchase, and what the shop earns of it.
    incentive_cost : what a response takes off the price.
    share : mean share of purchases that fall on the category.
    appeal : log-odds that a contact persuades a middling customer who would not have bought.
    """

    id: str
    price: float
    margin: float
    incentive_cost: float
    share: float
    appeal: float


#: Dear things persuade few and cheap things many: the likeliest response is seldom the best.
OFFERS: Final = (
    Offer("bread", 4.0, 1.6, 0.4, 0.40, -1.0),
    Offer("coffee", 12.0, 5.0, 1.5, 0.30, -1.8),
    Offer("wine", 40.0, 14.0, 5.0, 0.20, -2.6),
    Offer("tools", 90.0, 30.0, 12.0, 0.10, -3.4),
)


@dataclass(frozen=True)
class World:
    """What customers do, and what a contact changes.

    Attributes
    ----------
    orders_per_year : mean purchases of a customer who is left alone.
    persuasion : whether contacts persuade anybody at all.
    spread : standard deviation over customers of the log-odds to be persuaded.
    loyal_are_deaf : how much the log-odds to be persuaded fall with the logarithm of purchases;
        above 0, whoever responds most would mostly have bought anyway.
    level_at_end : purchases and persuasion on the last day, as a share of those on the first.
    contact_cost : of one contact.
    """

    name: str
    meaning: str
    orders_per_year: float
    persuasion: bool = True
    spread: float = 1.2
    loyal_are_deaf: float = 0.0
    level_at_end: float = 1.0
    contact_cost: float = 0.25


_ALL = (
    World(
        "no_effect",
        "contacts change nothing: whoever responds would have bought anyway",
        orders_per_year=12.0,
        persuasion=False,
    ),
    World(
        "heterogeneous",
        "contacts persuade some customers much and others hardly, offer by offer",
        orders_per_year=4.0,
        spread=1.6,
    ),
    World(
        "drift",
        "as heterogeneous, but purchases and persuasion fade to two fifths over the history",
        orders_per_year=6.0,
        spread=1.6,
        level_at_end=0.4,
    ),
    World(
        "subsidy_leak",
        "the likeliest to respond would have bought anyway, and get a discount for nothing",
        orders_per_year=40.0,
        loyal_are_deaf=0.8,
    ),
)

WORLDS: Final[Mapping[str, World]] = MappingProxyType({world.name: world for world in _ALL})
"""The worlds by name."""


def world_of(name: str) -> World:
    """Return a world by its name.

    Raises
    ------
    UsageError : there is no world of that name.
    """
    if name not in WORLDS:
        raise UsageError(
            "--world",
            f'there is no world "{name}"',
            expected="one of " + ", ".join(WORLDS),
            action=did_you_mean(name, WORLDS),
        )
    return WORLDS[name]
