"""Fitting: what to train (`Learner`), on what (`Data`), and the loop (`train`)."""

from imprint.fitting.data import Data, encode, encode_inputs, training_rows
from imprint.fitting.diversity import DynamicDiversity
from imprint.fitting.feed import Feed, as_torch_sampler
from imprint.fitting.feedback import Feedback, gradient_bound
from imprint.fitting.learner import Learner
from imprint.fitting.loop import Observer, State, Trained, as_input, predict, train
from imprint.fitting.losses import Dice, Focal, Loss, PositiveUnlabelled, WeakNegatives
from imprint.fitting.moving import NaiveSplit, Proportional
from imprint.fitting.progress import Bar, Progress, reporter, silent
from imprint.fitting.samplers import Fixed, Repeated, Sampler, SamplerState, Shuffled, sampler_from
from imprint.fitting.seeds import derive, generator

__all__ = [
    "Bar", "Data", "Dice", "DynamicDiversity", "Feed", "Feedback", "Fixed", "Focal", "Learner", "Loss", "NaiveSplit", "Observer",
    "PositiveUnlabelled", "Progress", "Proportional", "Repeated", "Sampler", "SamplerState", "Shuffled", "State", "Trained",
    "WeakNegatives", "as_input", "as_torch_sampler", "derive", "encode", "encode_inputs", "generator", "gradient_bound", "predict",
    "reporter", "sampler_from", "silent", "train", "training_rows",
]  # fmt: skip
