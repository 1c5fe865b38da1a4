"""ONNX files from outside: opened within bounds, run by onnxruntime on the CPU, and what they cost."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from ferdist.errors import ConfigError, RunError, reason_of
from ferdist.io import MIB, open_untrusted, read_untrusted
from ferdist.io import sha256 as sha256_of

ONNX: Final = ".onnx"
LIMIT: Final = 2**11 * MIB
"""Largest file of a model, or of its weights; protobuf's own is as large."""
EXTERNAL: Final = 1
"""TensorProto.DataLocation of weights in another file."""
TYPES: Final[dict[str, type[np.generic]]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}
"""Of an image, as onnxruntime names them."""

Image = tuple[int | None, int | None, int | None]
"""Channels, height and width; None where any number will do."""


@dataclass(frozen=True)
class Graph:
    """A model of one input, images, that onnxruntime has opened.

    Attributes:
        path: of the file.
        sha256: of the file and of those that hold its weights.
        shape: of the input, None where any number will do.
        dtype: of its values.
        output: name of what it gives.
        metadata: of the file.
    """

    path: Path
    sha256: str
    session: Any
    shape: tuple[int | None, ...]
    dtype: type[np.generic]
    output: str
    metadata: Mapping[str, str]

    @property
    def raw(self) -> bool:
        """Whether it takes uint8, and so normalises by itself."""
        return self.dtype is np.uint8

    def nhwc(self, layout: str | None) -> bool:
        """Whether channels come last: as the card says, else as the shape shows."""
        return layout == "nhwc" if layout else self.shape[1] not in (1, 3) and self.shape[3] in (1, 3)

    def image(self, layout: str | None) -> Image:
        """The shape of one image, as far as the graph fixes it."""
        _, *rest = self.shape
        channels, height, width = (rest[2], *rest[:2]) if self.nhwc(layout) else rest
        return channels, height, width

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What the model gives for images of its layout, (B, ...)."""
        name, batch = self.session.get_inputs()[0].name, self.shape[0] or len(images)
        images, answers = images.astype(self.dtype), []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            filled = np.concatenate([part, np.repeat(part[:1], batch - len(part), axis=0)])
            answers.append(self.session.run([self.output], {name: filled})[0][: len(part)])
        return np.concatenate(answers)

    def cost(self, image: tuple[int, int, int], layout: str | None) -> tuple[int, int | None]:
        """Parameters, and multiply-adds for one image (C, H, W).

        The parameters are all floating-point weights in the file, so those that a batch norm does not learn
        are among them. Multiply-adds are counted as `cost.multiply_adds` does; None where the graph hides the
        shape of a product.
        """
        import onnx

        proto = onnx.load_model_from_string(read_untrusted(self.path, LIMIT))
        floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
        parameters = sum(prod(one.dims) for one in proto.graph.initializer if one.data_type in floats)
        channels, height, width = image
        shape = (height, width, channels) if self.nhwc(layout) else image
        (given,) = _inputs(proto)
        for axis, number in zip(given.type.tensor_type.shape.dim, (1, *shape), strict=True):
            axis.Clear()
            axis.dim_value = number
        try:
            graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
        except Exception:  # of whatever a strange graph makes it
            return parameters, None
        shapes: dict[str, tuple[int, ...]] = {one.name: tuple(one.dims) for one in graph.initializer}
        for one in (*graph.input, *graph.value_info, *graph.output):
            shapes[one.name] = tuple(axis.dim_value for axis in one.type.tensor_type.shape.dim)
        costs = [_multiply_adds(node, shapes) for node in graph.node]
        known = [cost for cost in costs if cost is not None]
        return parameters, sum(known) if len(known) == len(costs) else None


def _multiply_adds(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Of a node, 0 where it is no product; None where a shape is unknown."""
    if node.op_type in ("Loop", "If", "Scan"):
        return None
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    first, second, out = (shapes.get(name, ()) for name in (*node.input[:2], node.output[0]))
    if not (first and second and out) or 0 in (*first, *second, *out):
        return None
    if node.op_type == "Conv":
        return prod(out) * prod(second[1:])
    if node.op_type == "ConvTranspose":
        return prod(first) * prod(second[1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return prod(out) * first[0 if transposed else -1]


def read_graph(path: Path, output: str = "") -> Graph:
    """Open a model; weights beside it in files of their own are read only from its folder.

    Args:
        path: of the .onnx file.
        output: name of the output, where there are several.

    Raises:
        ConfigError: if a package is missing, or the output is not named.
        RunError: if it is not such a model.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"ONNX needs the package {error.name}: pip install 'ferdist[export]'") from None
    try:
        content = read_untrusted(path, LIMIT)
        proto = onnx.load_model_from_string(content)
        weights = sorted(
            {_inside(tensor, path) for tensor in _tensors(proto) if tensor.data_location == EXTERNAL}
        )
        files = [hashlib.sha256(content).hexdigest()]
        for file in weights:
            with open_untrusted(file, LIMIT) as opened:
                files.append(sha256_of(opened))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # what matters comes as an exception
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except FileNotFoundError as error:
        raise RunError(f"{error.filename}: there is no such file") from None
    except Exception as error:  # protobuf and onnxruntime raise whatever a strange file makes them
        raise RunError(f"{path}: cannot be opened as an ONNX model: {reason_of(error)}") from None
    given, names = session.get_inputs(), [one.name for one in session.get_outputs()]
    if len(given) != 1 or len(given[0].shape) != 4 or given[0].type not in TYPES:
        text = ", ".join(f"{one.name} {one.type} {one.shape}" for one in given)
        raise RunError(f"{path}: it must take one batch of images of floats or uint8, not {text}")
    if output not in names and (output or len(names) > 1):
        raise ConfigError(f"{path}: it gives {', '.join(names)}: name one in its card (output_name)")
    shape = tuple(size if isinstance(size, int) and size > 0 else None for size in given[0].shape)
    digest = files[0] if len(files) == 1 else hashlib.sha256("".join(files).encode()).hexdigest()
    metadata = session.get_modelmeta().custom_metadata_map
    return Graph(path, digest, session, shape, TYPES[given[0].type], output or names[0], metadata)


def _tensors(message: Any) -> Iterator[Any]:
    """All TensorProto in a message of protobuf."""
    import onnx

    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if field.is_repeated else (value,):
                if isinstance(one, onnx.TensorProto):
                    yield one
                else:
                    yield from _tensors(one)


def _inside(tensor: Any, path: Path) -> Path:
    """The file of a tensor's values. Raises ValueError if it is not a plain file in the model's folder."""
    place = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    file = path.parent / place
    if len(PurePosixPath(place).parts) != 1 or place == ".." or file.is_symlink():
        raise ValueError(f"its weights are in {place!r}, which is not a file beside it")
    return file


def _inputs(proto: Any) -> list[Any]:
    """The inputs of a graph that are no weights."""
    named = {one.name for one in proto.graph.initializer}
    return [one for one in proto.graph.input if one.name not in named]
