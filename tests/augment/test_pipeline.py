"""The whole augmentation: what is drawn, what the pixels become, and what must not matter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats

from ferdist.augment import (
    Augment,
    AugmentConfig,
    Draws,
    GeometryConfig,
    NoiseConfig,
    OcclusionConfig,
    PhotometricConfig,
    denormalise,
    normalise,
)
from ferdist.errors import DataError

SHAPE = (1, 48, 48)
MANY = 20_000

OFF: dict[str, Any] = {
    "geometry": GeometryConfig(flip=0, probability=0),
    "photometric": PhotometricConfig(probability=0),
    "occlusion": OcclusionConfig(probability=0),
    "noise": NoiseConfig(probability=0),
}
FULL: dict[str, Any] = {
    "geometry": GeometryConfig(probability=1),
    "photometric": PhotometricConfig(probability=1),
    "occlusion": OcclusionConfig(probability=1),
    "noise": NoiseConfig(probability=1),
}


def _generator(seed: int = 0, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _images(count: int = 8, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=_generator(1))


def _augment(channels: int = 1, **parts: Any) -> Augment:
    return Augment(AugmentConfig(**parts), [0.5, 0.4, 0.3][:channels], [0.25, 0.2, 0.3][:channels])


def _only(**parts: Any) -> Augment:
    return _augment(**{**OFF, **parts})


def _is_uniform(values: torch.Tensor, low: float, high: float) -> bool:
    inside = values.min() >= low - 1e-4 and values.max() <= high + 1e-4
    return bool(inside) and stats.kstest(values.double().numpy(), "uniform", (low, high - low)).pvalue > 1e-3


def _has_share(chosen: torch.Tensor, probability: float) -> bool:
    error = (probability * (1 - probability) / len(chosen)) ** 0.5
    return abs(chosen.double().mean().item() - probability) < 4 * error


def test_off_is_exactly_normalise() -> None:
    images = _images()
    for augment in (_only(), _augment(enabled=False)):
        draws = augment.draw(len(images), SHAPE, _generator())
        assert all(field is None for field in draws)
        assert torch.equal(augment(images, draws), normalise(images, augment.mean, augment.std))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_normalise(dtype: torch.dtype) -> None:
    images = _images(4, (3, 6, 7))
    mean, std = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]
    normal = normalise(images, mean, std, dtype)
    assert normal.dtype == dtype
    expected = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(dtype, 1e-5)
    torch.testing.assert_close(normal.double(), expected, atol=tolerance, rtol=0)
    back = denormalise(normal, mean, std)
    torch.testing.assert_close(back, images / 255, atol=tolerance, rtol=0)


def test_geometry_draws() -> None:
    config = GeometryConfig(flip=0.3, probability=0.8, rotate=20, scale=[0.8, 1.3], translate=0.1)
    matrices = _only(geometry=config).draw(MANY, SHAPE, _generator()).affine
    assert matrices is not None
    flipped = matrices[:, 0, 0] < 0  # no rotation here reaches 90 degrees
    assert _has_share(flipped, 0.3)
    matrices = torch.where(flipped[:, None, None], matrices * torch.tensor([[-1.0], [1.0]]), matrices)
    identity = (matrices == torch.eye(2, 3)).all((1, 2))
    assert _has_share(~identity, 0.8)
    drawn = matrices[~identity]
    linear, offset = drawn[:, :, :2], drawn[:, :, 2:]
    degrees = torch.rad2deg(torch.atan2(linear[:, 0, 1], linear[:, 0, 0]))
    scale = linear.det() ** -0.5
    shift = -torch.linalg.solve(linear, offset)[:, :, 0] / 2
    assert _is_uniform(degrees, -20, 20)
    assert _is_uniform(scale, 0.8, 1.3)
    assert _is_uniform(shift[:, 0], -0.1, 0.1)
    assert _is_uniform(shift[:, 1], -0.1, 0.1)
    unrelated = torch.corrcoef(torch.stack([degrees, scale, *shift.T, flipped[~identity].float()]))
    assert (unrelated - torch.eye(5)).abs().max() < 0.04


def test_flip_alone_is_exact() -> None:
    augment = _only(geometry=GeometryConfig(flip=0.5, probability=0))
    draws = augment.draw(64, SHAPE, _generator())
    assert draws.affine is None
    assert draws.flip is not None
    assert 0 < draws.flip.sum() < 64
    images = _images(64)
    expected = torch.where(draws.flip[:, None, None, None], images.flip(3), images)
    assert torch.equal(augment(images, draws), normalise(expected, augment.mean, augment.std))


def test_tone_draws() -> None:
    config = PhotometricConfig(probability=0.6, brightness=0.3, contrast=0.2)
    tone = _only(photometric=config).draw(MANY, SHAPE, _generator()).tone
    assert tone is not None
    drawn = (tone != 1).any(1)
    assert _has_share(drawn, 0.6)
    assert _is_uniform(tone[drawn, 0], 0.7, 1.3)
    assert _is_uniform(tone[drawn, 1], 0.8, 1.2)


def test_occlusion_draws() -> None:
    config = OcclusionConfig(probability=0.7, area=[0.05, 0.4], aspect=[0.25, 4.0], fill="random")
    draws = _only(occlusion=config).draw(MANY, (1, 8, 12), _generator())
    centre, size, shape, fill = draws.centre, draws.size, draws.shape, draws.fill
    assert centre is not None and size is not None and shape is not None and fill is not None
    circle = shape == [one.name for one in config.shapes()].index("circle")
    drawn = (size > 0).all(1)
    assert _has_share(drawn, 0.7)
    assert (size[~drawn] == 0).all()
    assert _has_share(circle[drawn], 0.5)
    assert _is_uniform(centre[drawn, 0], -0.5, 7.5)
    assert _is_uniform(centre[drawn, 1], -0.5, 11.5)
    rectangles, circles = size[drawn & ~circle], size[drawn & circle]
    assert _is_uniform(rectangles.prod(1) / 96, 0.05, 0.4)
    assert _is_uniform((rectangles[:, 0] / rectangles[:, 1]).log(), math.log(0.25), math.log(4))
    assert torch.equal(circles[:, 0], circles[:, 1])
    assert _is_uniform(math.pi / 4 * circles[:, 0] ** 2 / 96, 0.05, 0.4)
    for code in range(len(config.fills())):
        assert _has_share(fill[drawn] == code, 1 / 3)


def test_occluders_and_moves_scale_with_the_image() -> None:
    """The same draws cover the same place and share of a larger face in colour, and move it as far."""
    occlusion = OcclusionConfig(probability=1, area=[0.1, 0.3], fill="constant")
    covers, squares = [], []
    for channels, side in ((1, 48), (3, 112), (3, 224)):
        shape = (channels, side, side)
        face = torch.zeros((32, *shape), dtype=torch.uint8)
        face[:, :, side // 3 : 2 * side // 3, side // 3 : 2 * side // 3] = 255
        for part, images, found in (
            ({"occlusion": occlusion}, torch.full_like(face, 255), covers),
            ({"geometry": GeometryConfig(flip=0, probability=1)}, face, squares),
        ):
            augment = _augment(channels, **{**OFF, **part})
            draws = augment.draw(len(images), shape, _generator())
            shown = denormalise(augment(images, draws), augment.mean, augment.std)
            torch.testing.assert_close(shown, shown[:, :1].expand_as(shown), msg="all channels alike")
            found.append(_centre_and_share((1 - shown if "occlusion" in part else shown)[:, 0]))
    for small, *larger in (covers, squares):
        assert small.std(0).min() > 0.02
        for large in larger:
            torch.testing.assert_close(large, small, atol=0.03, rtol=0)


def _centre_and_share(pixels: torch.Tensor) -> torch.Tensor:
    """Of what is white in images (B, S, S): row and column from 0 to 1, and its share, (B, 3)."""
    at = (torch.arange(pixels.shape[1]) + 0.5) / pixels.shape[1]
    total = pixels.sum((1, 2))
    row, column = (pixels.sum(2) @ at) / total, (pixels.sum(1) @ at) / total
    return torch.stack([row, column, pixels.mean((1, 2))], 1)


@pytest.mark.parametrize(
    ("key", "name"),
    [*(("shape", n) for n in ("rectangle", "circle")), *(("fill", n) for n in ("constant", "mean", "noise"))],
)
def test_one_shape_or_fill_only(key: str, name: str) -> None:
    config = OcclusionConfig(**{key: name})
    assert [one.trained for one in getattr(config, f"{key}s")()] == [name]
    draws = _only(occlusion=config).draw(500, SHAPE, _generator())
    assert (getattr(draws, key) == 0).all()
    assert (draws.texture is not None) == (key == "shape" or name == "noise")


def test_noise_draws() -> None:
    draws = _only(noise=NoiseConfig(probability=0.2, sigma=[0.02, 0.1])).draw(MANY, (1, 2, 2), _generator())
    assert draws.sigma is not None
    drawn = draws.sigma > 0
    assert _has_share(drawn, 0.2)
    assert _is_uniform(draws.sigma[drawn], 0.02, 0.1)


def test_parts_are_drawn_independently_of_each_other() -> None:
    draws = _augment().draw(MANY, (1, 2, 2), _generator())
    assert draws.affine is not None and draws.tone is not None
    assert draws.size is not None and draws.sigma is not None
    active = torch.stack(
        [
            draws.affine[:, 1, 2] != 0,
            draws.affine[:, 0, 0] < 0,
            draws.tone[:, 0] != 1,
            draws.size[:, 0] > 0,
            draws.sigma > 0,
        ]
    )
    assert (torch.corrcoef(active.double()) - torch.eye(5)).abs().max() < 4.5 / MANY**0.5


@pytest.mark.parametrize("part", list(OFF))
def test_switching_a_part_off_leaves_the_others_draws(part: str) -> None:
    whole = _augment().draw(64, SHAPE, _generator())
    without = _augment(**{part: OFF[part]}).draw(64, SHAPE, _generator())
    assert sum(field is None for field in without) > sum(field is None for field in whole)
    for name in ("affine", "tone", "centre", "size", "shape", "fill", "sigma"):
        kept = getattr(without, name)
        assert kept is None or torch.equal(kept, getattr(whole, name)), name


def test_draws_depend_on_the_generator_only() -> None:
    augment = _augment()
    first = augment.draw(16, SHAPE, _generator(7))
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again, other = augment.draw(16, SHAPE, _generator(7)), augment.draw(16, SHAPE, _generator(8))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b, c in zip(first, again, other, strict=True):
        if a is not None:
            assert torch.equal(a, b)
            assert not torch.equal(a, c)


def test_a_samples_decisions_do_not_depend_on_how_many_follow() -> None:
    augment = _augment()
    few, many = augment.draw(5, SHAPE, _generator()), augment.draw(50, SHAPE, _generator()).slice(0, 5)
    for name in ("affine", "tone", "centre", "size", "shape", "fill", "sigma"):
        torch.testing.assert_close(getattr(few, name), getattr(many, name))


@pytest.mark.parametrize("shape", [(1, 48, 48), (3, 20, 33)])
def test_slices_give_what_the_whole_batch_gives(shape: tuple[int, int, int]) -> None:
    augment, images = _augment(shape[0], **FULL), _images(13, shape)
    draws = augment.draw(13, shape, _generator())
    whole = augment(images, draws)
    parts = [augment(images[a:b], draws.slice(a, b)) for a, b in ((0, 6), (6, 7), (7, 13))]
    assert torch.equal(torch.cat(parts), whole)


def test_a_sample_is_not_touched_by_its_neighbours() -> None:
    augment, images = _augment(**FULL), _images(6)
    draws = augment.draw(6, SHAPE, _generator())
    others_changed = images.clone()
    others_changed[1:] = 255 - others_changed[1:]
    assert torch.equal(augment(images, draws)[0], augment(others_changed, draws)[0])
    assert not torch.equal(augment(images, draws)[1], augment(others_changed, draws)[1])


def test_only_the_result_has_another_dtype() -> None:
    """Autocast and torch's default dtype change nothing either, and images and draws stay as they were."""
    augment, images = _augment(**FULL), _images()
    draws = augment.draw(8, SHAPE, _generator())
    images_before, draws_before = images.clone(), [None if f is None else f.clone() for f in draws]
    expected = augment(images, draws)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        result = augment(images, draws, dtype)
        assert result.dtype == dtype
        assert torch.equal(result, expected.to(dtype))
    assert torch.equal(images, images_before)
    assert all(a is None or torch.equal(a, b) for a, b in zip(draws, draws_before, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(images, augment.draw(8, SHAPE, _generator())), expected)
    torch.set_default_dtype(torch.float64)
    try:
        result = augment(images, augment.draw(8, SHAPE, _generator()))
    finally:
        torch.set_default_dtype(torch.float32)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_memory_format_does_not_matter() -> None:
    augment = _augment(3, **FULL)
    images = _images(4, (3, 24, 24))
    draws = augment.draw(4, (3, 24, 24), _generator())
    result = augment(images.to(memory_format=torch.channels_last), draws)
    torch.testing.assert_close(result, augment(images, draws), atol=1e-5, rtol=0)


def test_mean_fill_is_zero_after_normalisation_and_constant_is_the_gray_level() -> None:
    images = _images(64, (3, 24, 24))
    constant = [(0.3 - mean) / std for mean, std in zip([0.5, 0.4, 0.3], [0.25, 0.2, 0.3], strict=True)]
    for fill, level in (("mean", [0.0, 0.0, 0.0]), ("constant", constant)):
        config = OcclusionConfig(probability=1, area=[0.2, 0.3], fill=fill, value=0.3)
        augment = _augment(3, **{**OFF, "occlusion": config})
        result = augment(images, augment.draw(64, (3, 24, 24), _generator()))
        covered = (result != normalise(images, augment.mean, augment.std)).any(1)
        assert covered.any((1, 2)).all()
        values = result.permute(0, 2, 3, 1)[covered]
        torch.testing.assert_close(values, torch.tensor(level).expand_as(values), atol=1e-6, rtol=0)


def test_the_extremes_stay_in_the_range_of_an_image() -> None:
    extreme = _augment(
        geometry=GeometryConfig(flip=1, probability=1, rotate=180, scale=[0.1, 10], translate=1),
        photometric=PhotometricConfig(probability=1, brightness=1, contrast=1),
        occlusion=OcclusionConfig(probability=1, area=[1, 1], aspect=[0.01, 100]),
        noise=NoiseConfig(probability=1, sigma=[1, 1]),
    )
    result = extreme(_images(200), extreme.draw(200, SHAPE, _generator()))
    assert result.isfinite().all()
    assert result.min() >= (0 - 0.5) / 0.25
    assert result.max() <= (1 - 0.5) / 0.25


def test_one_sample_one_pixel_and_no_sample() -> None:
    augment = _augment(**FULL)
    for count, shape in ((1, SHAPE), (2, (1, 1, 1)), (0, SHAPE)):
        draws = augment.draw(count, shape, _generator())
        assert augment(_images(count, shape), draws).shape == (count, *shape)


def test_wrong_images_draws_and_statistics_are_refused() -> None:
    augment = _augment()
    with pytest.raises(ValueError, match=r"images must be uint8, not torch\.float32"):
        augment(_images() / 255, augment.draw(8, SHAPE, _generator()))
    with pytest.raises(ValueError, match="must be uint8"):
        normalise(_images().long(), [0.5], [0.25])
    with pytest.raises(ValueError, match="draws for 1 samples do not fit a batch of 8"):
        augment(_images(8), augment.draw(1, SHAPE, _generator()))
    for mean, std in (([0.5], [0.0]), ([0.5], [0.2, 0.2]), ([0.5], [float("nan")])):
        with pytest.raises(DataError, match="std above 0"):
            Augment(AugmentConfig(), mean, std)


def test_pixels_never_ask_the_device_for_a_value() -> None:
    """Tensors on the meta device have no values: an `.item()`, `.cpu()` or a branch on one would raise."""
    augment, images = _augment(**FULL), _images()
    draws = augment.draw(8, SHAPE, _generator())
    meta = Draws(*(None if field is None else field.to("meta") for field in draws))
    assert augment(images.to("meta"), meta).shape == images.shape


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 48, 48), (3, 20, 33)])
def test_compiled_pixels_are_the_eager_ones(shape: tuple[int, int, int]) -> None:
    augment = Augment(
        AugmentConfig(**FULL), [0.0] * shape[0], [1.0] * shape[0]
    )  # differences in units of white
    images = _images(8, shape)
    draws = augment.draw(8, shape, _generator())
    torch.compiler.reset()
    compiled = torch.compile(augment.__call__, fullgraph=True)
    torch.testing.assert_close(compiled(images, draws), augment(images, draws), atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_the_gpu() -> None:
    augment, images = _augment(**FULL), _images()
    draws = augment.draw(8, SHAPE, _generator())
    on_gpu = Draws(*(None if field is None else field.cuda() for field in draws))
    result = augment(images.cuda(), on_gpu)
    torch.testing.assert_close(result.cpu(), augment(images, draws), atol=1e-4, rtol=0)
    augment.draw(8, SHAPE, _generator(0, "cuda"))  # fills the cache of constants
    torch.cuda.set_sync_debug_mode("error")
    try:
        own = augment.draw(8, SHAPE, _generator(0, "cuda"))
        augment(images.cuda(non_blocking=True), own)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    again = augment.draw(8, SHAPE, _generator(0, "cuda"))
    assert all(a is None or torch.equal(a, b) for a, b in zip(own, again, strict=True))
