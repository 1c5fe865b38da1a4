"""`python -m tests.fuzz`: changed files against everything that reads files from outside (`make fuzz`)."""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ferdist.table import Table, count
from tests.fuzz.change import read_files
from tests.fuzz.run import Case, Tally, keep, kept, run
from tests.fuzz.targets import TARGETS

KEPT = Path(__file__).parent / "kept"
"""The cases that failed once, a zip each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments say and print a table; the exit code is 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--cases", type=int, default=10_000, help="of each target (%(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first case")
    parser.add_argument("--case", type=int, metavar="N", help="this case alone")
    parser.add_argument("--kept", action="store_true", help="the cases in tests/fuzz/kept alone")
    parser.add_argument("--keep", action="store_true", help="put the first case of each fault there")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.targets) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}: there are {', '.join(TARGETS)}")
    numbers = range(chosen.first, chosen.first + chosen.cases)
    if chosen.case is not None:
        numbers = range(chosen.case, chosen.case + 1)
    torch.set_num_threads(1)  # a child cannot use its parent's threads
    tallies = {}
    for name in chosen.targets or TARGETS:
        cases = _kept(name) if chosen.kept else _made(name, numbers)
        tally = tallies[name] = run(TARGETS[name], cases, functools.partial(_progress, name, len(cases)))
        _print_failures(tally)
        first = {fault: case for case, fault in reversed(tally.failures.items())}
        for case in first.values() if chosen.keep else ():
            KEPT.mkdir(exist_ok=True)
            keep(KEPT / f"{case.replace(' ', '-')}.zip", cases[case]())
    print(f"\n{_table(tallies).markdown()}")
    return int(any(tally.failures for tally in tallies.values()))


def _made(target: str, numbers: range) -> dict[str, Case]:
    with tempfile.TemporaryDirectory() as place:
        TARGETS[target].write(Path(place))
        valid = read_files(Path(place))
    names = (f"{target} {number}" for number in numbers)
    return {name: functools.partial(TARGETS[target].case, name, valid) for name in names}


def _kept(target: str) -> dict[str, Case]:
    return {path.stem: functools.partial(kept, path) for path in sorted(KEPT.glob(f"{target}-*.zip"))}


def _progress(target: str, cases: int, done: int) -> None:
    print(f"{target}: {done:,} of {cases:,}", flush=True)


def _print_failures(tally: Tally) -> None:
    """A line for each fault, with the first cases that show it."""
    cases = defaultdict(list)
    for case, fault in tally.failures.items():
        cases[fault].append(case)
    for fault, names in cases.items():
        print(f"  {fault} ({count(len(names), 'case')}: {', '.join(names[:5])})", flush=True)


def _table(tallies: Mapping[str, Tally]) -> Table:
    rows = [
        {
            "target": name,
            "cases": count(sum(tally.ends.values())),
            **{outcome: count(number) for outcome, number in tally.ends.items()},
            "largest growth, MiB": count(tally.growth // 2**20),
            "seconds": count(round(tally.seconds)),
        }
        for name, tally in tallies.items()
    ]
    return Table.of("Fuzzing", rows)


if __name__ == "__main__":
    sys.exit(main())
