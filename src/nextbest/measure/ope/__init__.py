"""Off-policy evaluation: what another policy would have earned, from logged random choices.

Every choice that was logged with its probability is a small experiment. Rows where the logged
choice is one that the other policy prefers count for more, the others for less, so that their mean
is what the other policy would have earned. Where the log never tried what the other policy wants,
nobody can know, and `evaluate` refuses with the numbers.
"""

from nextbest.measure.ope.evaluation import Evaluation, evaluate
from nextbest.measure.ope.gate import hold
from nextbest.measure.ope.log import NO_OFFER, LoggedPolicy
from nextbest.measure.ope.overlap import Limits, Overlap, measure_overlap
from nextbest.measure.ope.table import LOG_COLUMNS, TARGET_COLUMNS, read_log, read_pair

__all__ = [
    "LOG_COLUMNS",
    "NO_OFFER",
    "TARGET_COLUMNS",
    "Evaluation",
    "Limits",
    "LoggedPolicy",
    "Overlap",
    "evaluate",
    "hold",
    "measure_overlap",
    "read_log",
    "read_pair",
]
