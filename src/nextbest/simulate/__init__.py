"""A simulated shop of which the truth is known: what every customer does with and without an offer.

Nothing else can say what a policy is really worth: real data never show the same customer contacted
and not contacted. `Shop` is a shop, `Shop.tables` its history in the contract's tables,
`Shop.truth` what a contact would change from here on, `write_project` makes a project that trains
and decides on that history, and `engine` and `rivals` are policies to value by the truth.
"""

from nextbest.simulate.policies import engine, rivals
from nextbest.simulate.rooms import write_project
from nextbest.simulate.shop import Shop
from nextbest.simulate.truth import Truth
from nextbest.simulate.worlds import OFFERS, WORLDS, Offer, World, world_of

__all__ = [
    "OFFERS",
    "WORLDS",
    "Offer",
    "Shop",
    "Truth",
    "World",
    "engine",
    "rivals",
    "world_of",
    "write_project",
]
