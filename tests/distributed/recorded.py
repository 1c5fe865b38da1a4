"""`python -m tests.distributed.recorded FOLDER MODULE ARGUMENTS`: run a module and note each collective.

Each rank writes a line of JSON for each collective into ``FOLDER/RANK``: its name, and the shapes, types and
devices of its tensors.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

COLLECTIVES = (
    "all_gather",
    "all_gather_object",
    "all_reduce",
    "all_to_all",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "reduce",
    "reduce_scatter",
    "scatter",
)


def main(folder: Path, module: str, arguments: list[str]) -> None:
    """Run ``python -m MODULE ARGUMENTS`` with every collective of ``torch.distributed`` noted."""
    with (folder / os.environ["RANK"]).open("a", buffering=1) as file:

        def noted(name: str, collective: Callable[..., Any]) -> Callable[..., Any]:
            def call(*tensors: Any, **options: Any) -> Any:
                flat = torch.utils._pytree.tree_leaves((tensors, options))
                kinds = [[list(t.shape), str(t.dtype), t.device.type] for t in flat if isinstance(t, Tensor)]
                file.write(json.dumps([name, kinds]) + "\n")
                return collective(*tensors, **options)

            return call

        for name in COLLECTIVES:
            setattr(dist, name, noted(name, getattr(dist, name)))
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
