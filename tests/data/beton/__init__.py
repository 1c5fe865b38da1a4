"""What the fixtures ``faces``, ``videos`` and ``write`` are."""

from collections.abc import Callable
from pathlib import Path

from ferdist.data.record import FaceDataset

Make = Callable[..., FaceDataset]
Write = Callable[..., Path]
