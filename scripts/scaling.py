"""What more GPUs give: a step's time from the bytes that ferdist sends and published speeds of links.

    python scripts/scaling.py [--rate 16000] [--floor 9.0]

A step of a rank with b images takes max(floor, b / rate) on its GPU, and the sum of the gradients where the
backward pass, two thirds of that, does not hide it. (A compiled network hides nothing: it hands over all
gradients at its end.) A ring of N ranks sends 2 (N - 1) / N of the bytes over its slowest link, in 2 (N - 1)
turns with a latency each. Neither rate nor floor was measured on a GPU.
"""

from __future__ import annotations

import argparse
from typing import Final, NamedTuple

from ferdist.config import Config
from ferdist.models import Task, build_model
from ferdist.table import Table

IMAGES: Final = 28_709
"""Of FER2013's Training."""
GPUS_PER_NODE: Final = 8
LATENCY: Final = 5e-6
"""Seconds of a turn of the ring."""
BACKWARD: Final = 2 / 3


class Link(NamedTuple):
    """A link in one direction, in bytes a second: what its standard or vendor publishes."""

    name: str
    speed: float


NVLINK: Final = Link("NVLink 4 (H100)", 450e9)
PCIE: Final = Link("PCIe 4.0 x16", 31.5e9)
INFINIBAND: Final = Link("InfiniBand NDR, one port a GPU", 50e9)
ETHERNET: Final = Link("100 Gb Ethernet, one port a node", 12.5e9 / GPUS_PER_NODE)


def step_seconds(images: int, gpus: int, link: Link, gradient_bytes: int, rate: float, floor: float) -> float:
    """Seconds of a step in which each rank has so many images."""
    compute = max(floor, images / rate)
    ring = 2 * (gpus - 1)
    summing = ring / gpus * gradient_bytes / link.speed + ring * LATENCY
    return compute + max(0.0, summing - BACKWARD * compute)


def main() -> None:
    """Print the table of docs/scaling.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=16_000, help="images a second of a busy GPU")
    parser.add_argument("--floor", type=float, default=9.0, help="milliseconds of a step without images")
    options = parser.parse_args()
    network = build_model(Config().model, Task(1, 48, 48, 7))
    gradient_bytes = sum(p.numel() * p.element_size() for p in network.parameters())
    print(f"{gradient_bytes / 1e6:.1f} MB of gradients a step\n")
    rows = []
    for batch in (16, 128, 512):
        alone = batch / step_seconds(batch, 1, NVLINK, gradient_bytes, options.rate, options.floor / 1000)
        for gpus, links in ((8, (NVLINK, PCIE)), (64, (INFINIBAND, ETHERNET))):
            for link in links:
                seconds = step_seconds(batch, gpus, link, gradient_bytes, options.rate, options.floor / 1000)
                rate = batch * gpus / seconds
                steps = IMAGES // (batch * gpus)
                rows.append(
                    {
                        "images a GPU": str(batch),
                        "GPUs": str(gpus),
                        "slowest link": link.name,
                        "images/s": f"{rate:,.0f}",
                        "of ideal": f"{rate / gpus / alone:.0%}",
                        "s an epoch": f"{IMAGES / rate:.2f}",
                        "steps an epoch": str(steps) if steps else "larger than an epoch",
                    }
                )
    print(Table.of("Scaling", rows).markdown())


if __name__ == "__main__":
    main()
