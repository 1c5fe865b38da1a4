"""Where a network looks: CBAM's spatial gates, and Grad-CAM for any convolutional network.

Grad-CAM (Selvaraju et al., ICCV 2017, section 3) of ResNet-18's last features, 3 x 3 at 48 px, says little
about places. Finer features are taken, and multiplied with their gradient place by place (HiResCAM: Draelos
and Carin, 2020); docs/occlusion.md has the measurements. captum and pytorch-grad-cam would have to be told
the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferdist.augment import normalise
from ferdist.data.record import Images, Integers
from ferdist.errors import RunError
from ferdist.evaluation.benchmark import Benchmark, Cell, hidden_pixels
from ferdist.models.cbam import SpatialAttention

Floats = npt.NDArray[np.float32]

CELLS: Final = (
    Cell("eye_band", 1, "zero"),
    Cell("mouth_band", 1, "zero"),
    Cell("glasses", 1, "drawn"),
    Cell("mask", 1, "drawn"),
)
"""What faces are covered with to see where a network then looks: what lies over the eyes or the mouth."""
COARSEST: Final = 5
"""Most pixels of the image, along a side, that a pixel of the features for Grad-CAM stands for."""
BATCH_SIZE: Final = 32
HEAT: Final = 0.5
"""Share of the heat map's colour in a picture; the rest is the face."""


@dataclass(frozen=True)
class Looks:
    """Where a network looks in B images.

    Attributes:
        probabilities: float32 (B, K), rows sum to 1.
        gates: float32 (B, h, w) in (0, 1), or (0, 2) for ``unit`` gates: the spatial gate of the last CBAM
            of each size ``(h, w)``, from the finest on; empty for a network without CBAM.
        evidence: float32 (B, h, w), 0 to 1: Grad-CAM of the predicted class over the last features that are
            fine enough, divided by its maximum; all 0 where nothing speaks for the class.
    """

    probabilities: Floats
    gates: dict[tuple[int, int], Floats]
    evidence: Floats


def look(network: nn.Module, images: Images, mean: Sequence[float], std: Sequence[float]) -> Looks:
    """Where a network looks.

    Args:
        network: in evaluation mode; it is computed in fp32, and its parameters get no gradient.
        images: uint8 (B, C, H, W), B > 0.
        mean, std: per channel, in [0, 1] units.

    Raises:
        RunError: if the network has no features that are fine enough.
    """
    starts = range(0, len(images), BATCH_SIZE)
    parts = [_look(network, images[start : start + BATCH_SIZE], mean, std) for start in starts]
    return Looks(
        np.concatenate([part.probabilities for part in parts]),
        {size: np.concatenate([part.gates[size] for part in parts]) for size in parts[0].gates},
        np.concatenate([part.evidence for part in parts]),
    )


def _look(network: nn.Module, images: Images, mean: Sequence[float], std: Sequence[float]) -> Looks:
    device = next(network.parameters()).device
    height, width = images.shape[2:]
    gates: dict[tuple[int, int], Floats] = {}
    fine: dict[str, Tensor] = {}
    coarse: set[str] = set()  # blocks that make features coarser
    mixed: set[str] = set()  # those whose outputs have no places
    names = {module: name for name, module in network.named_modules()}

    def watch(module: nn.Module, _: Any, output: Any) -> None:
        name = names[module]
        if isinstance(module, SpatialAttention):
            gates[(output.shape[2], output.shape[3])] = output.detach()[:, 0].float().cpu().numpy()
        elif not isinstance(output, Tensor) or output.ndim < 3:
            return
        elif output.requires_grad and _is_fine(output, height, width):
            fine.pop(name, None)  # where it is used twice, it stands where it was last
            fine[name] = output
        elif output.ndim == 3 or not _has_places(output, height, width):
            mixed.add(name)
        elif not isinstance(module, nn.Sequential):  # it has one branch
            coarse.add(name)

    # What CAM explains is the network's use of the pixels: they carry the gradient, frozen weights or not.
    pixels = normalise(torch.from_numpy(images).to(device), mean, std).requires_grad_()
    hooks = [module.register_forward_hook(watch) for module in network.modules()]
    try:
        with torch.enable_grad():
            scores = network(pixels)
            predicted = scores.argmax(1)
            # A part of a block leaves out its other branches. A coarse one may be no block, but the backbone.
            inside = {name: len(coarse & _around(name)) for name in fine if mixed.isdisjoint(_around(name))}
            outermost = min(inside.values(), default=0)
            features = [fine[name] for name, depth in inside.items() if depth == outermost][-1:]
            if not features:
                raise RunError(
                    f"no Grad-CAM: the network has no features with a pixel for every {COARSEST} of the image"
                )
            (gradient,) = torch.autograd.grad(scores.gather(1, predicted[:, None]).sum(), features)
    finally:
        for hook in hooks:
            hook.remove()
    evidence = F.relu((gradient * features[0]).sum(1)).detach()
    peak = evidence.amax((1, 2), keepdim=True)
    return Looks(
        scores.detach().float().softmax(1).cpu().numpy(),
        gates,
        (evidence / peak.clamp(min=torch.finfo(peak.dtype).tiny)).cpu().numpy(),
    )


def _is_fine(output: Tensor, height: int, width: int) -> bool:
    """Whether an output has enough places of the image; a gate of one channel does not count."""
    enough = output.ndim == 4 and COARSEST * output.shape[2] >= height and COARSEST * output.shape[3] >= width
    return enough and output.shape[1] > 1 and _has_places(output, height, width)


def _has_places(output: Tensor, height: int, width: int) -> bool:
    """Whether the sides of an output (B, C, h, w) are in the image's proportion, as far as they can be."""
    expected = output.shape[3] * height / width
    return abs(output.shape[2] - expected) <= max(1.0, 0.25 * expected)


def _around(name: str) -> set[str]:
    """The names of the modules around one, without the whole network's."""
    parts = name.split(".")
    return {".".join(parts[:depth]) for depth in range(1, len(parts))}


def choose_faces(index: Integers, label: Integers, rounds: int) -> list[Integers]:
    """Faces to look at, drawn once: in each round another one of each class, in label order.

    A class whose samples are used up is left out, and so is a round without any face.

    Args:
        index: int64 (M,), the samples to choose from.
        label: int64 (N,), the class of every sample of the data, by its number.
        rounds: how many rounds.
    """
    order = np.random.default_rng(0).permutation(np.sort(index))
    by_class = [order[label[order] == name] for name in np.unique(label[order])]
    chosen = [[of_one[n] for of_one in by_class if n < len(of_one)] for n in range(rounds)]
    return [np.array(faces, dtype=np.int64) for faces in chosen if faces]


@dataclass(frozen=True)
class Watched:
    """Faces as they are and covered, and where a network looks in both.

    Attributes:
        cell: of the occlusion benchmark, what covers them.
        index, label: int64 (B,), sample numbers and true classes.
        images: uint8 (2, B, C, H, W), as they are and covered.
        hidden: bool (B, H, W), the pixels that are covered.
        looks: in the two.
    """

    cell: Cell
    index: Integers
    label: Integers
    images: Images
    hidden: npt.NDArray[np.bool_]
    looks: tuple[Looks, Looks]

    @property
    def gate_size(self) -> tuple[int, int] | None:
        """Size of the finest spatial gates, None for a network without CBAM."""
        return next(iter(self.looks[0].gates), None)

    def maps(self) -> list[Floats]:
        """The finest gates, if there are any, and the evidence, enlarged: float32 (2, B, H, W) each."""
        height, width = self.hidden.shape[1:]
        size = self.gate_size
        found = [] if size is None else [[looks.gates[size] for looks in self.looks]]
        found.append([looks.evidence for looks in self.looks])
        return [np.stack([enlarge(part, height, width) for part in pair]) for pair in found]

    def evidence_inside(self) -> Floats:
        """Share of the evidence that lies on the covered pixels, float32 (2, B); NaN where there is none."""
        evidence = self.maps()[-1]
        total = evidence.sum((2, 3))
        inside = (evidence * self.hidden).sum((2, 3))
        shares: Floats = np.divide(inside, total, out=np.full_like(total, np.nan), where=total > 0)
        return shares

    def gate_inside(self) -> Floats | None:
        """Mean of the finest gate on the covered pixels over its mean on all, float32 (2, B)."""
        if self.gate_size is None:
            return None
        gate = self.maps()[0]
        inside = (gate * self.hidden).sum((2, 3)) / self.hidden.sum((1, 2))
        return np.asarray(inside / gate.mean((2, 3)), dtype=np.float32)

    def pictures(self) -> npt.NDArray[np.uint8]:
        """Each face with its gate, if there is one, and its evidence; then the same covered.

        Returns:
            uint8 (B, P, H, W, 3); P is 6, or 4 without CBAM.
        """
        maps = self.maps()
        columns = []
        for state, images in enumerate(self.images):
            columns.append(_gray(images).repeat(3, -1))
            columns += [heat(images, part[state]) for part in maps]
        return np.stack(columns, axis=1)


def watch(
    network: nn.Module,
    images: Images,
    index: Integers,
    label: Integers,
    benchmark: Benchmark,
    mean: Sequence[float],
    std: Sequence[float],
) -> list[Watched]:
    """Where a network looks in faces as they are and under each of ``CELLS``.

    Args:
        network, images, mean, std: as for `look`, which says what is raised.
        index, label: int64 (B,), sample numbers and true classes.
        benchmark: of the data that the samples are from.
    """
    plain = look(network, images, mean, std)
    height, width = images.shape[2:]
    watched = []
    for cell in CELLS:
        covered = benchmark.cover(images, index, cell)
        hidden = hidden_pixels(cell, index, height, width)
        looks = (plain, look(network, covered, mean, std))
        watched.append(Watched(cell, index, label, np.stack([images, covered]), hidden, looks))
    return watched


def enlarge(maps: Floats, height: int, width: int) -> Floats:
    """Maps (B, h, w) bilinearly enlarged to (B, H, W)."""
    large = F.interpolate(torch.from_numpy(maps)[:, None], (height, width), mode="bilinear")
    return np.asarray(large[:, 0].numpy(), dtype=np.float32)


def heat(images: Images, maps: Floats) -> npt.NDArray[np.uint8]:
    """Maps (B, H, W) as colours over faces (B, C, H, W): uint8 (B, H, W, 3).

    The least value of each map is dark blue and the greatest yellow.
    """
    from matplotlib import colormaps

    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    spread = (maps - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
    colours = 255 * colormaps["plasma"](spread)[..., :3]
    return np.asarray(np.rint((1 - HEAT) * _gray(images) + HEAT * colours), dtype=np.uint8)


def _gray(images: Images) -> npt.NDArray[np.uint8]:
    """Gray levels (B, H, W, 1) of images (B, C, H, W)."""
    return np.asarray(np.rint(images.mean(1)), dtype=np.uint8)[..., None]
