#!/usr/bin/env python3
"""What happens inside networks: python scripts/network_health.py BETON [RUN...] [--networks NAME,...]

For each registered network with fresh weights, and for each run's averaged ones, on up to 256 images of val
(or of fold 0), fp32: the standard deviation of the activations from the first ReLU to the last, the share of
ReLU channels that never fire, and the smallest and the median deviation across images of its gates. A
markdown table.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.googlenet import BasicConv2d

from ferdist.augment import normalise
from ferdist.config import load_config
from ferdist.data.beton import BetonLoader, open_beton
from ferdist.data.folds import Holdout
from ferdist.evaluation.model import load_trained
from ferdist.models import Task, build_model, model_names
from ferdist.training.liveness import by_gate, gate_statistics

IMAGES = 256
HEAD = """\
| network | ReLUs | sd, first to last | dead channels %: mean, worst | gates' sd over images: least, median |
| --- | ---: | --- | ---: | ---: |"""
CONFIGS = Path(__file__).parent.parent / "configs" / "fer2013"


@torch.no_grad()
def relu_outputs(network: nn.Module, images: Tensor) -> list[tuple[float, float]]:
    """Of each ReLU, in forward order: the deviation of its output, and its share of dead channels.

    A channel is dead where it is 0 for every image, at every place.
    """
    found: list[tuple[float, float]] = []

    def watch(module: nn.Module, inputs: Any, output: Tensor) -> None:
        channels = output.float().flatten(2).amax(2) if output.ndim > 2 else output.float()
        found.append((output.float().std().item(), (channels.amax(0) <= 0).float().mean().item()))

    relus = [module for module in network.modules() if isinstance(module, nn.ReLU)]
    # GoogLeNet's convolutions end in a ReLU that is no module.
    convolutions = [module for module in network.modules() if isinstance(module, BasicConv2d)]
    hooks = [module.register_forward_hook(watch) for module in [*relus, *convolutions]]
    network(images)
    for hook in hooks:
        hook.remove()
    return found


def row(name: str, network: nn.Module, images: Tensor) -> str:
    """The network's line of the table."""
    outputs = relu_outputs(network, images)
    chosen = [outputs[round(i * (len(outputs) - 1) / 4)] for i in range(5)]
    spread = ", ".join(f"{deviation:.3g}" for deviation, _ in chosen)
    dead = [share for _, share in outputs]
    across = [numbers[2] for numbers in by_gate(gate_statistics(network, images)).values()]
    gates = f"{min(across):.4f}, {statistics.median(across):.4f}" if across else "none"
    shares = f"{100 * statistics.mean(dead):.1f}, {100 * max(dead):.1f}"
    return f"| {name} | {len(outputs)} | {spread} | {shares} | {gates} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("beton", type=Path)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--networks", help="with fresh weights, by default all", metavar="NAME,...")
    arguments = parser.parse_args()
    beton = open_beton(arguments.beton)
    loader = BetonLoader(beton, batch_size=IMAGES, device=torch.device("cpu"))
    held = Holdout() if (beton.split >= 0).any() else Holdout(fold=0)
    pixels = next(loader.batches(beton.indices("val", held)[:IMAGES])).image
    images = normalise(pixels, *beton.normalisation(held))
    task = Task(*beton.manifest.image_shape, len(beton.manifest.classes))
    print(HEAD)
    names = arguments.networks.split(",") if arguments.networks is not None else model_names()
    for name in filter(None, names):
        torch.manual_seed(0)
        own = CONFIGS / f"{name}.yaml"
        config = load_config(own if own.exists() else CONFIGS / "base.yaml", [f"model.name={name}"])
        network = build_model(replace(config.model, pretrained=None), task)
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None  # the next pass alone gives the running statistics
        with torch.no_grad():
            network(images)
        print(row(f"{name}, fresh", network.eval(), images))
    for run in arguments.runs:
        trained = load_trained(str(run), "last", torch.device("cpu"))
        name = f"{trained.card.config.model.name}, {run.name}, step {trained.step}"
        print(row(name, trained.network, images))


if __name__ == "__main__":
    main()
