"""The jobs behind the commands: check, train, promote, refresh. No printing here."""

from nextbest.jobs.check import CheckReport, check_project
from nextbest.jobs.given import features
from nextbest.jobs.promotion import promote, rollback
from nextbest.jobs.refreshing import RefreshResult, refresh
from nextbest.jobs.training import Progress, train, trainable

__all__ = [
    "CheckReport",
    "Progress",
    "RefreshResult",
    "check_project",
    "features",
    "promote",
    "refresh",
    "rollback",
    "train",
    "trainable",
]
