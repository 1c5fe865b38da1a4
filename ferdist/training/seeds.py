"""Every random draw of a run is a function of (seed, purpose, position), so a resumed run draws the same."""

from __future__ import annotations

from typing import Final

import numpy as np

from ferdist.data.record import Integers

WEIGHTS: Final = 0
ORDER: Final = 1
AUGMENT: Final = 2
DROPOUT: Final = 3


def derive_seed(seed: int, purpose: int, *position: int) -> int:
    """A 63-bit seed for one purpose at one position (epoch, step, rank)."""
    state = np.random.SeedSequence([seed, purpose, *position]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def epoch_order(indices: Integers, seed: int, epoch: int) -> Integers:
    """The order of samples in an epoch: a permutation of ``indices`` that depends on seed and epoch only."""
    generator = np.random.Generator(np.random.Philox(derive_seed(seed, ORDER, epoch)))
    return generator.permutation(indices)
