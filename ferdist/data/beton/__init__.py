"""Beton files: the one file per data set that training reads, and the only folder that imports FFCV.

``X.beton`` holds the pixels and codes, ``X.json`` the manifest that every opening is checked against, and
``X.samples.csv`` one row per sample.
"""

from __future__ import annotations

import numba
import numba.typed
import torch

# numba prefers TBB, which on one core can keep a process that has forked from ending.
numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]  # type: ignore[attr-defined]

# Importing FFCV sets torch's and numba's number of threads to one for the whole process. Its JPEG field fills
# a typed dictionary that only Python code reads: compiling that takes two seconds of each start, a dict none.
_threads = torch.get_num_threads(), numba.get_num_threads()
_typed_dict = numba.typed.Dict
numba.typed.Dict = dict
try:
    from ferdist.data.beton.labels import Labels, labels_of
    from ferdist.data.beton.loader import Batch, BetonLoader, DeviceCache, cached
    from ferdist.data.beton.manifest import Manifest
    from ferdist.data.beton.opened import Beton, open_beton
    from ferdist.data.beton.stage import stage_beton, staged_path
    from ferdist.data.beton.writer import write_beton
finally:
    numba.typed.Dict = _typed_dict
    torch.set_num_threads(_threads[0])
    numba.set_num_threads(_threads[1])

__all__ = [
    "Batch",
    "Beton",
    "BetonLoader",
    "DeviceCache",
    "Labels",
    "Manifest",
    "cached",
    "labels_of",
    "open_beton",
    "stage_beton",
    "staged_path",
    "write_beton",
]
