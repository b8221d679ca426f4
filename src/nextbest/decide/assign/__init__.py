"""Who gets what is scarce: capacities and budgets over all customers, and what more is worth."""

from nextbest.decide.assign.prices import Price, Prices, price_adjusted
from nextbest.decide.assign.problem import Constraint, Problem, Unit, offer_limits
from nextbest.decide.assign.solve import EXACT_PAIRS, Assignment, assign

__all__ = [
    "EXACT_PAIRS",
    "Assignment",
    "Constraint",
    "Price",
    "Prices",
    "Problem",
    "Unit",
    "assign",
    "offer_limits",
    "price_adjusted",
]
