"""Augmentation on the device: draws are eager, pixels can be compiled.

`Augment.draw` makes every random decision and noise field, for a whole global batch, from one generator;
`Augment.__call__` is a pure function of images and draws, without a loop over samples or a wait for the
device, so `torch.compile(augment, fullgraph=True)` takes it.

The order of operations, all in float32 where black is 0 and white 1:

1. uint8 to [0, 1].
2. Flip, rotation, scale and translation, in one resampling: interpolating twice would blur twice. A flip
   alone moves pixels and interpolates nothing.
3. Brightness and contrast: the light on the face, after the pose and before anything that lies in front.
4. Occlusion, so that the occluder keeps its sharp edges and exactly its fill.
5. Gaussian noise: the camera sees the occluder too.
6. Normalisation last, so that every number of the configuration is in units of white, whatever the data's
   mean and standard deviation; the fill `mean` becomes exactly 0.

Functions whose names end in `_` change their argument, as in torch: the pipeline owns its pixels, and on a
CPU fresh memory for every step would cost more than the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ferdist.augment.config import AugmentConfig
from ferdist.augment.geometry import adjust_tone_, affine_matrices, mirror, warp
from ferdist.augment.noise import add_noise_, standard_normal, uniform_bytes
from ferdist.augment.occlusion import occlude_, occluder_mask, occluder_size
from ferdist.errors import DataError

_UNIFORMS = 18
"""Uniform numbers per sample. All are always drawn, a few thousand a batch, so that switching one part off
leaves what the other parts draw unchanged."""


class Draws(NamedTuple):
    """The random decisions for B samples; a part that is off is None.

    Attributes:
        flip: bool (B,), set where flips are all there is to the geometry.
        affine: float (B, 2, 3), maps output to input coordinates, flip included; identity where not drawn.
        tone: float (B, 2), factors of brightness and contrast; 1 where not drawn.
        centre: float (B, 2), y and x of the occluder in pixels.
        size: float (B, 2), its height and width in pixels; 0 where not drawn.
        shape: int64 (B,), its place in `OcclusionConfig.shapes`.
        fill: int64 (B,), that of its fill in `OcclusionConfig.fills`.
        texture: uint8 (B, C, H, W), what the fill "noise" shows.
        sigma: float (B,), standard deviation of the noise in units of white; 0 where not drawn.
        noise: float (B, C, H, W), standard normal.
    """

    flip: Tensor | None = None
    affine: Tensor | None = None
    tone: Tensor | None = None
    centre: Tensor | None = None
    size: Tensor | None = None
    shape: Tensor | None = None
    fill: Tensor | None = None
    texture: Tensor | None = None
    sigma: Tensor | None = None
    noise: Tensor | None = None

    def slice(self, start: int, stop: int) -> Draws:
        """The draws of samples start to stop - 1: a rank's share of the global batch. Views, no copies."""
        return Draws(*(None if field is None else field[start:stop] for field in self))


class Augment:
    """Batched, per-sample augmentation of uint8 images, as `AugmentConfig` describes it.

    Args:
        config: what to do.
        mean: per channel, of the training data, in [0, 1].
        std: per channel, above 0.

    Raises:
        DataError: if mean and std differ in length or a std is not above 0.
    """

    def __init__(self, config: AugmentConfig, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise DataError(
                f"mean {list(mean)} and std {list(std)}: give one of each per channel, std above 0"
            )
        self.config = config
        self._shapes, self._fills = config.occlusion.shapes(), config.occlusion.fills()
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)

    def draw(self, samples: int, image_shape: tuple[int, int, int], generator: torch.Generator) -> Draws:
        """Make the random decisions for a batch.

        Draw for the whole global batch and `slice` it: then what a sample gets depends on the generator's
        state and its place in the global batch only, not on the world size.

        Args:
            samples: B, the number of samples.
            image_shape: (C, H, W).
            generator: source of randomness; everything is drawn on its device.

        Returns:
            B samples' draws.
        """
        if not self.config.enabled:
            return Draws()
        uniforms = torch.rand(
            samples, _UNIFORMS, device=generator.device, dtype=torch.float32, generator=generator
        )
        columns = uniforms.t().contiguous()
        return Draws(
            **self._draw_geometry(columns[:6], image_shape),
            **self._draw_tone(columns[6:9]),
            **self._draw_occluders(columns[9:16], image_shape, generator),
            **self._draw_noise(columns[16:], image_shape, generator),
        )

    def __call__(self, images: Tensor, draws: Draws, dtype: torch.dtype = torch.float32) -> Tensor:
        """Apply draws to images: a pure function.

        Args:
            images: uint8 (B, C, H, W).
            draws: of the same B samples, on the same device.
            dtype: of the result; the arithmetic is float32.

        Returns:
            (B, C, H, W), normalised; without any draws exactly `normalise(images, mean, std, dtype)`.

        Raises:
            ValueError: if the images are not uint8 or the draws are for another number of samples.
        """
        for field in draws:
            if field is not None and len(field) != len(images):
                raise ValueError(f"draws for {len(field)} samples do not fit a batch of {len(images)}")
        pixels = _to_unit(images)
        if draws.affine is not None:
            pixels = warp(pixels, draws.affine)
        elif draws.flip is not None:
            pixels = mirror(pixels, draws.flip)
        if draws.tone is not None:
            brightness, contrast = draws.tone.unbind(1)
            pixels = adjust_tone_(pixels, brightness, contrast)
        if draws.centre is not None and draws.size is not None:
            assert draws.shape is not None and draws.fill is not None
            height, width = images.shape[2:]
            mask = occluder_mask(self._shapes, draws.shape, draws.centre, draws.size, height, width)
            pixels = occlude_(
                pixels,
                mask,
                self._fills,
                draws.fill,
                value=self.config.occlusion.value,
                mean=_per_channel(self.mean, pixels),
                texture=draws.texture,
            )
        if draws.noise is not None and draws.sigma is not None:
            pixels = add_noise_(pixels, draws.noise, draws.sigma)
        return _standardise_(pixels, self.mean, self.std, dtype)

    def _draw_geometry(self, uniforms: Tensor, image_shape: tuple[int, int, int]) -> dict[str, Tensor]:
        config = self.config.geometry
        flip = uniforms[0] < config.flip
        if config.probability == 0:
            return {"flip": flip} if config.flip > 0 else {}
        drawn = uniforms[1] < config.probability
        degrees = _symmetric(uniforms[2], config.rotate) * drawn
        scale = torch.where(drawn, _between(uniforms[3], config.scale), 1.0)
        translate = (_symmetric(uniforms[4:6], config.translate) * drawn).t()
        return {"affine": affine_matrices(flip, degrees, scale, translate, image_shape[1:])}

    def _draw_tone(self, uniforms: Tensor) -> dict[str, Tensor]:
        config = self.config.photometric
        if config.probability == 0:
            return {}
        drawn = uniforms[0] < config.probability
        brightness = _symmetric(uniforms[1], config.brightness)
        contrast = _symmetric(uniforms[2], config.contrast)
        return {"tone": 1 + torch.stack([brightness, contrast], 1) * drawn[:, None]}

    def _draw_occluders(
        self, uniforms: Tensor, image_shape: tuple[int, int, int], generator: torch.Generator
    ) -> dict[str, Tensor]:
        config = self.config.occlusion
        if config.probability == 0:
            return {}
        drawn = uniforms[0] < config.probability
        shape = _place(uniforms[1], self._shapes)
        area = _between(uniforms[2], config.area)
        aspect = torch.exp(_between(uniforms[3], [math.log(value) for value in config.aspect]))
        _, height, width = image_shape
        # Pixel i spans i - 0.5 to i + 0.5, so this is uniform over the image's whole area.
        centre = torch.stack([uniforms[4] * height, uniforms[5] * width], 1) - 0.5
        size = occluder_size(self._shapes, shape, area, aspect, height, width)
        draws = {
            "centre": centre,
            "size": size * drawn[:, None],
            "shape": shape,
            "fill": _place(uniforms[6], self._fills),
        }
        if any(fill.noise for fill in self._fills):
            draws["texture"] = uniform_bytes((len(drawn), *image_shape), generator)
        return draws

    def _draw_noise(
        self, uniforms: Tensor, image_shape: tuple[int, int, int], generator: torch.Generator
    ) -> dict[str, Tensor]:
        config = self.config.noise
        if config.probability == 0:
            return {}
        drawn = uniforms[0] < config.probability
        return {
            "sigma": _between(uniforms[1], config.sigma) * drawn,
            "noise": standard_normal((len(drawn), *image_shape), generator),
        }


def normalise(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """uint8 (B, C, H, W) to `(images / 255 - mean) / std`: what evaluation uses.

    Args:
        images: uint8 (B, C, H, W).
        mean: per channel, in [0, 1].
        std: per channel.
        dtype: of the result; the arithmetic is float32.

    Raises:
        ValueError: if the images are not uint8.
    """
    return _standardise_(_to_unit(images), mean, std, dtype)


def denormalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The inverse of `normalise`, for display: float (B, C, H, W) back to float32 in [0, 1], clamped."""
    pixels = images.to(torch.float32)
    return (pixels * _per_channel(std, pixels) + _per_channel(mean, pixels)).clamp_(0, 1)


def _to_unit(images: Tensor) -> Tensor:
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, not {images.dtype}")
    return images.to(torch.float32).div_(255)


def _standardise_(pixels: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    return pixels.sub_(_per_channel(mean, pixels)).div_(_per_channel(std, pixels)).to(dtype)


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    """(C, 1, 1) on the device of `like`; by fills, which unlike a copy from the host never wait for it."""
    return torch.stack([like.new_full((1, 1), value) for value in values])


def _between(uniform: Tensor, bounds: Sequence[float]) -> Tensor:
    return bounds[0] + uniform * (bounds[1] - bounds[0])


def _place(uniform: Tensor, options: Sequence[object]) -> Tensor:
    """A place in ``options``, all equally likely."""
    return (uniform * len(options)).long()


def _symmetric(uniform: Tensor, limit: float) -> Tensor:
    return (uniform * 2 - 1) * limit
