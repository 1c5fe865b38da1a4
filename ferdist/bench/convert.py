"""fer2013.csv to a beton."""

from __future__ import annotations

import torch

from ferdist.bench.byhand import NAME, parse_only, rows_by_hand
from ferdist.bench.settings import Bench
from ferdist.bench.timing import Floor, Peer, Row, Seconds, contest
from ferdist.data import prepare


def run(bench: Bench) -> list[Row]:
    """In process, with the imports done: seconds for the whole file."""
    source, cpu = bench.csv, torch.device("cpu")

    def convert() -> None:
        prepare.fer2013(source, bench.fresh_folder("convert"))

    def split_rows() -> None:
        rows_by_hand(source, bench.fresh_folder("rows"))

    return contest(
        "convert",
        f"{source.name}, {source.stat().st_size / 2**20:.0f} MiB",
        "s",
        ferdist=Seconds(convert, cpu, 0.0),
        peers=[Peer(NAME, Seconds(split_rows, cpu, 0.0))],
        floor=Floor("read_csv and one fromstring", Seconds(lambda: parse_only(source), cpu, 0.0)),
        rounds=bench.size.long_rounds,
    )
