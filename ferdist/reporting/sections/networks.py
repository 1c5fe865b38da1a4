"""Networks and pairs of them: the sections of Table 1."""

from __future__ import annotations

from collections.abc import Sequence

from ferdist.reporting import table1
from ferdist.reporting.networks import Pair
from ferdist.reporting.page import Section


def table1_section(group: table1.DataGroup) -> Section:
    """The networks on one data set beside what was published, compared in pairs."""
    return Section(
        f"table1-{group.data}",
        f"Table 1: {group.data}",
        tables=(table1.published_table(group), table1.pair_table(group.pairs)),
        folded_tables=(table1.scores_table(group.networks),),
        points=(
            *table1.protocol_sentences(group),
            *table1.pair_sentences(group.pairs),
            *group.refused,
            *table1.open_sentences(group.networks),
        ),
    )


def paired_section(pairs: Sequence[Pair], remarks: Sequence[str]) -> Section:
    """Runs compared in pairs."""
    return Section(
        "paired",
        "Paired comparisons",
        tables=(table1.pair_table(pairs),),
        missing=remarks,
        points=[*table1.pair_sentences(pairs)],
    )
