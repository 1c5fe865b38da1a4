"""The same work as others do it: the csv module, PIL and DataLoader, torchvision, kornia, timm.

What needs an optional package raises ImportError where it is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import resnet18
from torchvision.transforms import v2

from ferdist.augment import AugmentConfig, GeometryConfig, NoiseConfig, OcclusionConfig, PhotometricConfig
from ferdist.data.record import Images, Integers
from ferdist.models import ModelConfig, Task
from ferdist.models.resnet import fit

Transform = Callable[[Any], Any]
Pipeline = Callable[[Tensor], Tensor]
"""uint8 (B, C, H, W) to normalised floats."""

OFF: Final = AugmentConfig(
    geometry=GeometryConfig(flip=0.0, probability=0.0),
    photometric=PhotometricConfig(probability=0.0),
    occlusion=OcclusionConfig(probability=0.0),
    noise=NoiseConfig(probability=0.0),
)
"""Nothing is changed."""


class PilFaces(Dataset[tuple[Any, int]]):
    """Images in memory, each made a PIL image and transformed when it is asked for, as public code does.

    Args:
        images: uint8 (N, C, H, W), C 1 or 3.
        labels: int64 (N,).
        transform: of a PIL image.
    """

    def __init__(self, images: Images, labels: Integers, transform: Transform) -> None:
        gray = images.shape[1] == 1
        self.images = images[:, 0] if gray else np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        self.labels, self.transform = labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def pil_loader(
    images: Images, labels: Integers, transform: Transform, batch_size: int, workers: int, *, train: bool
) -> DataLoader[tuple[Any, int]]:
    """A DataLoader of `PilFaces` whose workers stay between the epochs."""
    faces = PilFaces(images, labels, transform)
    return DataLoader(
        faces, batch_size, shuffle=train, drop_last=train, num_workers=workers, persistent_workers=True
    )


def sample_transform(
    config: AugmentConfig, mean: Sequence[float], std: Sequence[float], *, pil: bool = True
) -> Transform:
    """The parts of ``config`` that are on, for one PIL image or, without ``pil``, float tensor in [0, 1].

    The result is a normalised tensor.
    """
    geometry, tone, occlusion, noise = config.geometry, config.photometric, config.occlusion, config.noise
    steps: list[Transform] = []
    if geometry.flip > 0:
        steps.append(transforms.RandomHorizontalFlip(geometry.flip))
    if geometry.probability > 0:
        affine = transforms.RandomAffine(
            geometry.rotate,
            translate=(geometry.translate, geometry.translate),
            scale=tuple(geometry.scale),
            interpolation=transforms.InterpolationMode.BILINEAR,
        )
        steps.append(transforms.RandomApply([affine], geometry.probability))
    if tone.probability > 0:
        jitter = transforms.ColorJitter(tone.brightness, tone.contrast)
        steps.append(transforms.RandomApply([jitter], tone.probability))
    if pil:
        steps.append(transforms.ToTensor())
    if occlusion.probability > 0:
        area, aspect = tuple(occlusion.area), tuple(occlusion.aspect)
        steps.append(transforms.RandomErasing(occlusion.probability, area, aspect, value=0))
    if noise.probability > 0:
        gaussian = v2.GaussianNoise(sigma=float(np.mean(noise.sigma)))
        steps.append(transforms.RandomApply([gaussian], noise.probability))
    return cast(Transform, transforms.Compose([*steps, transforms.Normalize(mean, std)]))


def torchvision_pipeline(config: AugmentConfig, mean: Sequence[float], std: Sequence[float]) -> Pipeline:
    """The parts of ``config`` that are on, sample by sample, on tensors."""
    transform = sample_transform(config, mean, std, pil=False)
    return lambda images: torch.stack([transform(image) for image in images.float().div_(255)])


def kornia_pipeline(config: AugmentConfig, mean: Sequence[float], std: Sequence[float]) -> Pipeline:
    """The parts of ``config`` that are on, with kornia's batched operators."""
    import kornia.augmentation as kornia

    geometry, tone, occlusion, noise = config.geometry, config.photometric, config.occlusion, config.noise
    steps: list[nn.Module] = []
    if geometry.flip > 0:
        steps.append(kornia.RandomHorizontalFlip(p=geometry.flip))
    if geometry.probability > 0:
        shift, scale = (geometry.translate, geometry.translate), tuple(geometry.scale)
        affine = kornia.RandomAffine(
            geometry.rotate, shift, scale, padding_mode="border", p=geometry.probability
        )
        steps.append(affine)
    if tone.probability > 0:
        brightness, contrast = ((1 - change, 1 + change) for change in (tone.brightness, tone.contrast))
        steps.append(kornia.RandomBrightness(brightness, p=tone.probability))
        steps.append(kornia.RandomContrast(contrast, p=tone.probability))
    if occlusion.probability > 0:
        area, aspect = tuple(occlusion.area), tuple(occlusion.aspect)
        steps.append(kornia.RandomErasing(area, aspect, p=occlusion.probability))
    if noise.probability > 0:
        steps.append(kornia.RandomGaussianNoise(std=float(np.mean(noise.sigma)), p=noise.probability))
    steps.append(kornia.Normalize(torch.tensor(mean), torch.tensor(std)))
    pipeline = nn.Sequential(*steps)
    return lambda images: cast(Tensor, pipeline(images.float().div_(255)))


def timm_erasing(
    config: AugmentConfig, mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Pipeline:
    """The occlusion of ``config`` with timm's RandomErasing."""
    from timm.data.random_erasing import RandomErasing

    occlusion, normalise = config.occlusion, transforms.Normalize(mean, std)
    ranges = (*occlusion.area, *occlusion.aspect)
    erase: Any = cast(Any, RandomErasing)(occlusion.probability, *ranges, mode="const", device=str(device))
    return lambda images: cast(Tensor, erase(normalise(images.float().div_(255))))


def torchvision_network(stem: str, task: Task) -> nn.Module:
    """torchvision's ResNet-18, without attention, with ferdist's stem of this name."""
    return fit(resnet18(num_classes=task.classes), ModelConfig(stem=stem), task)


def timm_network(stem: str, task: Task) -> nn.Module:
    """timm's ResNet-18 with a CBAM in each residual block (before the addition), and with the same stem."""
    import timm

    block = {"attn_layer": "cbam"}
    network = timm.create_model("resnet18", num_classes=task.classes, block_args=block, pretrained=False)
    return fit(network, ModelConfig(stem=stem), task)


class PlainLoop:
    """fp32 in the default layout, SGD, the loss read at each step: the loop of most public code.

    Args:
        network: any classifier.
        device: where it goes.
    """

    NAME = "fp32 NCHW loop, DataLoader, PIL"

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network, self.device = network.to(device), device
        self.optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        self.loss = nn.CrossEntropyLoss()

    def train(self, loader: DataLoader[tuple[Any, int]]) -> None:
        """One epoch."""
        self.network.train()
        total = 0.0
        for images, labels in loader:
            inputs, targets = images.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            loss = self.loss(self.network(inputs), targets)
            loss.backward()
            self.optimizer.step()
            total += loss.item()

    @torch.no_grad()
    def score(self, loader: DataLoader[tuple[Any, int]], views: Callable[[Tensor], list[Tensor]]) -> float:
        """Accuracy, with the mean of the views' probabilities."""
        self.network.eval()
        correct, seen = 0, 0
        for images, labels in loader:
            inputs = images.to(self.device)
            shown = torch.stack([self.network(view).softmax(1) for view in views(inputs)])
            correct += int((shown.mean(0).argmax(1).cpu() == labels).sum())
            seen += len(labels)
        return correct / seen
