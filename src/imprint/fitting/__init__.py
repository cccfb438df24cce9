"""Fitting: what to train (`Learner`), on what (`Data`), and the loop (`train`)."""

from imprint.fitting.data import Data, encode, encode_inputs, training_rows
from imprint.fitting.learner import Learner
from imprint.fitting.loop import Observer, State, Trained, as_input, predict, train
from imprint.fitting.progress import Bar, Progress, reporter, silent
from imprint.fitting.samplers import Sampler, SamplerState, Shuffled, as_torch_sampler
from imprint.fitting.seeds import derive, generator

__all__ = [
    "Bar", "Data", "Learner", "Observer", "Progress", "Sampler", "SamplerState", "Shuffled", "State", "Trained", "as_input",
    "as_torch_sampler", "derive", "encode", "encode_inputs", "generator", "predict", "reporter", "silent", "train",
    "training_rows",
]  # fmt: skip
