"""Fleets: many trainings over variations of rows, weights, targets and seeds, and what became of each."""

from imprint.fleets.executing import Executor, Finished, execute
from imprint.fleets.folds import assign, collect_out_of_fold
from imprint.fleets.member import Member, Outcome
from imprint.fleets.sequential import Sequential, outcomes, train_member
from imprint.fleets.shared import Shared, share

__all__ = [
    "Executor", "Finished", "Member", "Outcome", "Sequential", "Shared", "assign", "collect_out_of_fold", "execute", "outcomes",
    "share", "train_member",
]  # fmt: skip
