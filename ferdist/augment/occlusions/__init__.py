"""Occlusions: each kind is one class, which training, the benchmark, the report and the docs share.

Every module of this folder is imported, so a file with a class under ``@register`` is all that a new kind
takes (docs/extending.md).
"""

from importlib import import_module
from pkgutil import iter_modules

from ferdist.augment.occlusions.base import (
    ALL_FILLS,
    FILLS,
    KINDS,
    SEEN,
    UNITS,
    UNSEEN_KIND,
    UNSEEN_SIZE,
    Fill,
    Fixed,
    Mask,
    Occluder,
    Occlusion,
    Shape,
    Stream,
    fill_label,
    kind_label,
    register,
    trained_shapes,
)

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "ALL_FILLS",
    "FILLS",
    "KINDS",
    "SEEN",
    "UNITS",
    "UNSEEN_KIND",
    "UNSEEN_SIZE",
    "Fill",
    "Fixed",
    "Mask",
    "Occluder",
    "Occlusion",
    "Shape",
    "Stream",
    "fill_label",
    "kind_label",
    "register",
    "trained_shapes",
]
