"""`python -m tests.distributed.two_samples BETON`: as many ranks as there are score two samples of it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ferdist.data.beton import BetonLoader, labels_of, open_beton
from ferdist.evaluation.predict import predict, scorer_of
from ferdist.runtime.distributed import join_world


def main(path: Path) -> None:
    """Score samples 5 and 2, and print in which order they come back."""
    torch.manual_seed(0)
    with join_world("cpu") as world:
        beton = open_beton(path)
        network = nn.Sequential(nn.Flatten(), nn.Linear(2304, 7)).eval()
        loader = BetonLoader(beton, batch_size=4, device=world.device)
        chosen = np.array([5, 2])
        scorer = scorer_of(network, [0.5], [0.2], None)
        scored = predict(scorer, beton, labels_of(beton, "own"), loader, chosen, world)
        assert scored.probabilities.shape == (2, 7)
        assert scored.label.tolist() == beton.label[[2, 5]].tolist()
        sys.stdout.write(f"scored {scored.index.tolist()}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
