"""The same work as others do it: PIL and DataLoader, torchvision, kornia, timm."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import resnet18
from torchvision.transforms import v2

from ferdist.augment import AugmentConfig
from ferdist.bench.settings import Bench
from ferdist.data.record import Images, Integers
from ferdist.models import Task

Transform = Callable[[Any], Any]

_EXTRA: Final = "pip install 'ferdist[bench]'"


def optional(module: str) -> Any:
    """A module of the extra ``[bench]``, None where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def missing(package: str) -> str:
    """The hint for a peer that is not installed."""
    return f"{package} is not installed: {_EXTRA}"


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


@contextmanager
def data_loader(
    faces: PilFaces, batch_size: int, workers: int, *, train: bool
) -> Iterator[DataLoader[tuple[Any, int]]]:
    """A DataLoader whose workers stay between the epochs, and end with the block."""
    loader = DataLoader(
        faces,
        batch_size=batch_size,
        shuffle=train,
        drop_last=train,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    try:
        yield loader
    finally:
        loader._iterator = None  # ends the workers now, not whenever the loader is collected


def torchvision_steps(config: AugmentConfig) -> tuple[list[Transform], list[Transform]]:
    """The parts of ``config`` that are on, in torchvision's terms, for one sample.

    Returns:
        What is done to a PIL image or a tensor, and what only to a float tensor in [0, 1].
    """
    geometry, tone = config.geometry, config.photometric
    occlusion, noise = config.occlusion, config.noise
    either: list[Transform] = []
    floats: list[Transform] = []
    if geometry.flip > 0:
        either.append(transforms.RandomHorizontalFlip(geometry.flip))
    if geometry.probability > 0:
        shift = (geometry.translate, geometry.translate)
        affine = transforms.RandomAffine(
            geometry.rotate,
            translate=shift,
            scale=tuple(geometry.scale),
            interpolation=transforms.InterpolationMode.BILINEAR,
        )
        either.append(transforms.RandomApply([affine], geometry.probability))
    if tone.probability > 0:
        jitter = transforms.ColorJitter(tone.brightness, tone.contrast)
        either.append(transforms.RandomApply([jitter], tone.probability))
    if occlusion.probability > 0:
        floats.append(
            transforms.RandomErasing(
                occlusion.probability, tuple(occlusion.area), tuple(occlusion.aspect), value=0
            )
        )
    if noise.probability > 0:
        gaussian = v2.GaussianNoise(sigma=float(np.mean(noise.sigma)))
        floats.append(transforms.RandomApply([gaussian], noise.probability))
    return either, floats


def pil_transform(config: AugmentConfig | None, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """PIL image to normalised tensor, augmented where a config is given."""
    either, floats = ([], []) if config is None else torchvision_steps(config)
    steps = [*either, transforms.ToTensor(), *floats, transforms.Normalize(mean, std)]
    return cast(Transform, transforms.Compose(steps))


def torchvision_pipeline(
    config: AugmentConfig, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Tensor], Tensor]:
    """uint8 (B, C, H, W) to normalised floats, sample by sample, on tensors."""
    either, floats = torchvision_steps(config)
    compose = transforms.Compose([*either, *floats, transforms.Normalize(mean, std)])
    return lambda images: torch.stack([compose(image) for image in images.float().div_(255)])


def kornia_pipeline(
    config: AugmentConfig, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Tensor], Tensor] | None:
    """uint8 (B, C, H, W) to normalised floats with kornia's batched operators; None where it is missing."""
    kornia = optional("kornia.augmentation")
    if kornia is None:
        return None
    geometry, tone = config.geometry, config.photometric
    occlusion, noise = config.occlusion, config.noise
    steps: list[nn.Module] = []
    if geometry.flip > 0:
        steps.append(kornia.RandomHorizontalFlip(p=geometry.flip))
    if geometry.probability > 0:
        steps.append(
            kornia.RandomAffine(
                geometry.rotate,
                translate=(geometry.translate, geometry.translate),
                scale=tuple(geometry.scale),
                padding_mode="border",
                p=geometry.probability,
            )
        )
    if tone.probability > 0:
        brightness = (1 - tone.brightness, 1 + tone.brightness)
        contrast = (1 - tone.contrast, 1 + tone.contrast)
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
) -> Callable[[Tensor], Tensor] | None:
    """uint8 (B, C, H, W) to normalised floats with timm's RandomErasing; None where it is missing."""
    timm = optional("timm.data.random_erasing")
    if timm is None:
        return None
    occlusion = config.occlusion
    erase = timm.RandomErasing(
        occlusion.probability,
        *occlusion.area,
        *occlusion.aspect,
        mode="const",
        device=str(device),
    )
    normalise = transforms.Normalize(mean, std)
    return lambda images: cast(Tensor, erase(normalise(images.float().div_(255))))


def torchvision_network(stem: str, task: Task) -> nn.Module:
    """torchvision's ResNet-18, without attention."""
    return _fit_stem(resnet18(num_classes=task.classes), stem, task)


def timm_network(stem: str, task: Task) -> nn.Module | None:
    """timm's ResNet-18 with a CBAM in each residual block (before the addition); None where it is missing."""
    timm = optional("timm")
    if timm is None:
        return None
    network = timm.create_model(
        "resnet18", num_classes=task.classes, block_args={"attn_layer": "cbam"}, pretrained=False
    )
    return _fit_stem(network, stem, task)


def _fit_stem(network: Any, stem: str, task: Task) -> nn.Module:
    """Give a network of either library the first layers that `ferdist.models.resnet` has under this name."""
    kernel, stride = {"imagenet": (7, 2), "stride2": (3, 2), "stride1": (3, 1)}[stem]
    network.conv1 = nn.Conv2d(task.channels, 64, kernel, stride, kernel // 2, bias=False)
    if stem != "imagenet":
        network.maxpool = nn.Identity()
    return cast(nn.Module, network)


class PlainLoop:
    """fp32 in the default layout, SGD, the loss read at each step: the loop of most public code.

    Args:
        network: any classifier.
        device: where it goes.
    """

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


def images_of(bench: Bench, indices: Integers) -> tuple[Images, Integers]:
    """Samples of the bench's beton as arrays in memory: images uint8 (M, C, H, W), labels int64 (M,)."""
    from ferdist.data.beton import BetonLoader

    loader = BetonLoader(bench.beton, batch_size=256, device=torch.device("cpu"))
    parts = list(loader.batches(indices))
    images = torch.cat([part.image for part in parts]).numpy()
    labels = torch.cat([part.label for part in parts]).numpy()
    return images, labels
