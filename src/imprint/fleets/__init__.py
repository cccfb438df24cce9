"""Fleets: many trainings over variations of rows, weights, targets and seeds, and what became of each."""

from imprint.fleets.folds import assign, collect_out_of_fold
from imprint.fleets.sequential import Member, Outcome, Shared, outcomes, share, train_member

__all__ = ["Member", "Outcome", "Shared", "assign", "collect_out_of_fold", "outcomes", "share", "train_member"]
