"""Random numbers that depend on what they are for, not on what was drawn before them.

Every source of randomness of a training is a generator derived from (seed, purpose, epoch or step). A training that resumes
in the middle therefore draws the same numbers as one that was never interrupted, without any generator being stored.
"""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose; different purposes are independent.

    >>> derive(0, "shuffle", 1) == derive(0, "shuffle", 1), derive(0, "shuffle", 1) == derive(0, "shuffle", 2)
    (True, False)
    """
    text = ":".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for one purpose."""
    return torch.Generator(device=device).manual_seed(derive(seed, *purpose))
