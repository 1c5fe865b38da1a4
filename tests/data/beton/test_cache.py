from __future__ import annotations

import numpy as np
import pytest
import torch

from ferdist.data.beton import BetonLoader, DeviceCache, cached, loader, open_beton
from ferdist.errors import RunError
from tests.data.beton import Make, Write


def test_the_same_batches_bit_for_bit(faces: Make, write: Write) -> None:
    beton = open_beton(write(faces(60)))
    reader = BetonLoader(beton, batch_size=7, device=torch.device("cpu"))
    chosen = beton.indices("train")
    cache = DeviceCache(reader, np.random.default_rng(0).permutation(chosen))
    order = np.random.default_rng(1).permutation(chosen)
    read, kept = list(reader.batches(order)), list(cache.batches(order))
    assert len(read) == len(kept) == -(-len(order) // 7)
    for a, b in zip(read, kept, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.label, b.label)
        assert torch.equal(a.index, b.index)
        assert (a.image.dtype, a.label.dtype) == (b.image.dtype, b.label.dtype)


def test_a_batch_is_the_receivers_own(faces: Make, write: Write) -> None:
    beton = open_beton(write(faces(10)))
    cache = DeviceCache(BetonLoader(beton, batch_size=10, device=torch.device("cpu")), np.arange(10))
    first = next(iter(cache.batches(np.arange(10))))
    first.image.zero_()
    assert next(iter(cache.batches(np.arange(10)))).image.any()


def test_only_cached_samples_can_be_asked_for(faces: Make, write: Write) -> None:
    beton = open_beton(write(faces(20)))
    cache = DeviceCache(BetonLoader(beton, batch_size=4, device=torch.device("cpu")), np.array([3, 5, 9]))
    assert next(iter(cache.batches(np.array([9, 3])))).index.tolist() == [9, 3]
    assert list(cache.batches(np.array([], dtype=np.int64))) == []
    with pytest.raises(RunError, match="sample 4 is not in the cache"):
        cache.batches(np.array([3, 4]))
    for outside in (-1, 10):
        with pytest.raises(RunError, match="not in the cache"):
            cache.batches(np.array([outside]))


@pytest.mark.parametrize(
    ("cache", "budget", "kept"),
    [
        ("none", 1 << 30, False),
        ("device", 0, True),
        ("auto", 6 * 120, True),
        ("auto", 6 * 120 - 1, False),
    ],
)
def test_a_set_that_fits_is_kept_on_the_device(
    faces: Make, write: Write, monkeypatch: pytest.MonkeyPatch, cache: str, budget: int, kept: bool
) -> None:
    monkeypatch.setattr(loader, "CACHE_BYTES", budget)
    reader = BetonLoader(open_beton(write(faces(10))), batch_size=4, device=torch.device("cpu"))
    assert isinstance(cached(reader, np.arange(6), cache), DeviceCache) is kept
