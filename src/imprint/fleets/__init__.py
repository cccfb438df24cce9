"""Fleets: many trainings over variations of rows, weights, targets and seeds, and what became of each."""

from imprint.fleets.executing import Executor, Finished, execute
from imprint.fleets.fleet import Fleet, fleet
from imprint.fleets.folds import assign
from imprint.fleets.member import Member, Outcome
from imprint.fleets.members import Members
from imprint.fleets.out_of_fold import collect_out_of_fold
from imprint.fleets.plan import Plan, bootstrap, folds, grid, leave_out, mixtures, seeds, sizes, subsets
from imprint.fleets.sequential import Sequential, train_member
from imprint.fleets.shared import Shared, share
from imprint.fleets.weights import Weights

__all__ = [
    "Executor", "Finished", "Fleet", "Member", "Members", "Outcome", "Plan", "Sequential", "Shared", "Weights",
    "assign", "bootstrap", "collect_out_of_fold", "execute", "fleet", "folds", "grid", "leave_out", "mixtures",
    "seeds", "share", "sizes", "subsets", "train_member",
]  # fmt: skip
