"""Table 1: networks side by side, what was published beside what was measured, and paired comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ferdist.errors import RunError
from ferdist.evaluation.metrics import quick_score
from ferdist.evaluation.model import default_checkpoint
from ferdist.evaluation.pool import Pool
from ferdist.evaluation.predictions import join
from ferdist.models import is_reconstruction
from ferdist.reporting.networks import Network, Pair, compare_pairs
from ferdist.reporting.published import PUBLISHED, published_accuracy
from ferdist.reporting.words import SUBSETS, TTA
from ferdist.table import (
    MISSING,
    Number,
    Table,
    count,
    escape,
    percent,
    percent_interval,
    points,
    points_interval,
)

DIGITS: Final = 2
"""Decimals of accuracies in percent: as many as the published figures have."""


@dataclass(frozen=True)
class DataGroup:
    """The networks on one data set and their comparisons; a line for each two that cannot be compared."""

    data: str
    networks: list[Network]
    pairs: list[Pair]
    refused: list[str]


def group_by_data(networks: Sequence[Network]) -> list[DataGroup]:
    """The networks of each data set.

    Raises:
        RunError: if two data sets have one name but not one content.
    """
    groups: dict[str, list[Network]] = {}
    for network in networks:
        group = groups.setdefault(network.data, [])
        group.append(network)
        own, other = network.beton.manifest.sha256, group[0].beton.manifest.sha256
        if own != other:
            raise RunError(
                f"{network.name} and {group[0].name} cannot be compared: the betons of {network.data} "
                f"differ (sha256 {own[:12]} and {other[:12]}): report on them one at a time"
            )
    return [DataGroup(data, group, *compare_pairs(group)) for data, group in groups.items()]


def networks_markdown(groups: Sequence[DataGroup]) -> str:
    """table1.md of experiments: for each data set the table, all figures, comparisons, what is missing."""
    lines = ["# Table 1", "", "Accuracy in percent.", ""]
    for group in groups:
        lines += [f"## {escape(group.data)}", "", published_table(group).markdown()]
        lines += [*(f"- {escape(sentence)}" for sentence in protocol_sentences(group)), ""]
        everything = figures_table(group.networks)
        if everything.rows:
            lines += [f"### {everything.caption}", "", everything.markdown()]
        if group.pairs or group.refused:
            lines += [pairs_markdown("###", group.pairs, group.refused)]
        missing = [f"- {escape(sentence)}" for sentence in open_sentences(group.networks)]
        lines += ["### Runs that are not finished", "", *missing, ""] if missing else []
    return "\n".join(lines)


def pairs_markdown(level: str, pairs: Sequence[Pair], refused: Sequence[str]) -> str:
    """The comparisons under a heading of a level such as ``##``."""
    lines = [f"{level} Paired comparisons", ""]
    if pairs:
        lines += [pair_table(pairs).markdown()]
    lines += [f"- {escape(sentence)}" for sentence in (*pair_sentences(pairs), *refused)]
    return "\n".join([*lines, ""])


def published_table(group: DataGroup) -> Table:
    """One row per network: those of the paper in its order, also where nothing was measured, then others."""
    rows: list[tuple[str, ...]] = []
    others = {network.name: _row(network, None) for network in group.networks}
    for model, accuracy in PUBLISHED.get(group.data, {}).items():
        same = [network for network in group.networks if network.model == model]
        own = [network for network in same if published_accuracy(group.data, network.config) is not None]
        for network in own:
            rows.append(_row(network, accuracy))
            del others[network.name]
        if not own:
            kind = _yes_no(is_reconstruction(model))
            empty = [MISSING] * 5
            rows.append((model, percent(accuracy, DIGITS), *empty, kind, "missing: not in this report"))
    rows += others.values()
    return Table(
        caption=f"{group.data}: published and measured accuracy, in percent",
        head=(
            "Network",
            "Published",
            "Measured",
            "95 % interval",
            "Seed sd",
            "Seeds",
            "Parameters",
            "Reconstruction",
            "Protocol",
        ),
        rows=tuple(rows),
    )


def _row(network: Network, published: float | None) -> tuple[str, ...]:
    parameters = network.parameters()
    main = network.main
    measured = [MISSING] * 4
    if main is not None and main.scores is not None:
        on_val = "" if network.folds or main.split == "test" else " (val)"
        measured = [
            Number(percent(main.scores["accuracy"]["mean"], DIGITS) + on_val),
            percent_interval(tuple(main.scores["accuracy_ci95"]), DIGITS),
            percent(main.scores["accuracy"]["sd"], DIGITS),
            Number(len(main.scores["seeds"])),
        ]
    return (
        network.name,
        percent(published, DIGITS),
        *measured,
        MISSING if parameters is None else count(parameters),
        _yes_no(network.reconstruction()),
        protocol(network),
    )


def protocol(network: Network) -> str:
    """How a network's figure came about, in a few words; what is missing where there is none."""
    finished, unfinished = len(network.runs), len(network.open_runs)
    state = f"{finished} of {count(finished + unfinished, 'run')} finished"
    main = network.main
    if main is None:
        return f"missing: {state}"
    epochs = count(network.config.train.epochs, "epoch")
    picked = (
        f"best of {epochs}" if default_checkpoint(network.runs[0].config) == "best" else f"last of {epochs}"
    )
    if network.folds:
        words = f"{network.folds} folds by {_cluster_name(network)}, {picked}"
    elif main.split == "test":
        words = f"test, {picked}{' on val' if picked.startswith('best') else ''}; {_scorings(network)}"
    elif picked.startswith("best"):
        words = f"val, on which the {picked} was picked: leans upward"
    else:
        words = f"val, {picked}"
    if network.config.model.pretrained:
        words += f"; started from {Path(network.config.model.pretrained).name}"
    return f"{words}; {state}" if unfinished else words


def _scorings(network: Network) -> str:
    times = network.test_scorings
    return "scored once" if times == 1 else f"SCORED {times} TIMES: not independent"


def figures_table(networks: Sequence[Network]) -> Table:
    """Everything that was measured on uncovered faces; a seed that lacks runs has a row of its own."""
    return Table(
        caption="All figures, in percent",
        head=(
            "Network",
            "Scored on",
            "Subset",
            "Unit",
            "Views",
            "Seeds",
            "Samples",
            "Accuracy",
            "95 % interval",
            "Seed sd",
            "Balanced",
            "Macro-F1",
        ),
        rows=tuple(
            row for network in networks for pool in network.measured for row in _score_rows(network, pool)
        ),
    )


def _score_rows(network: Network, pool: Pool) -> Iterator[tuple[str, ...]]:
    scores = pool.scores
    where = f"{network.folds} folds" if network.folds else pool.split
    start = (network.name, where, SUBSETS[pool.subset], pool.unit, TTA[pool.tta])
    if scores is not None:
        yield (
            *start,
            Number(len(scores["seeds"])),
            count(scores["samples"]),
            percent(scores["accuracy"]["mean"], DIGITS),
            percent_interval(tuple(scores["accuracy_ci95"]), DIGITS),
            percent(scores["accuracy"]["sd"], DIGITS),
            percent(scores["balanced_accuracy"]["mean"], DIGITS),
            percent(scores["macro_f1"]["mean"], DIGITS),
        )
    for seed, parts in pool.by_seed().items():
        together = join(parts)
        if len(parts) < pool.seed_runs and len(together.index):
            partial = quick_score(together)
            yield (
                *start,
                f"seed {seed}, {len(parts)} of {count(pool.seed_runs, 'fold')}",
                count(len(together.index)),
                percent(partial["accuracy"], DIGITS),
                MISSING,
                MISSING,
                percent(partial["balanced_accuracy"], DIGITS),
                percent(partial["macro_f1"], DIGITS),
            )


def pair_table(pairs: Sequence[Pair]) -> Table:
    """A row for each two networks that were compared."""
    single = any(pair.single for pair in pairs)
    more = ("Only first / only second", "McNemar p") if single else ()
    return Table(
        caption="Paired comparisons",
        head=("First", "Second", "Scored on", "Difference", "95 % interval", "p", "p, Holm", *more),
        rows=tuple(_pair_row(pair, single) for pair in pairs),
    )


def _pair_row(pair: Pair, single: bool) -> tuple[str, ...]:
    row = [
        pair.first.name,
        pair.second.name,
        f"{pair.first.folds} folds" if pair.first.folds else pair.split,
        points(pair.difference.accuracy, DIGITS),
        points_interval(pair.difference.interval, DIGITS),
        p_value(pair.difference.p),
        p_value(pair.p_holm),
    ]
    if single and pair.single is not None:
        found = pair.single
        row += [Number(f"{found.only_first} / {found.only_second} (seed {pair.seed})"), p_value(found.p)]
    elif single:
        row += [MISSING, MISSING]
    return tuple(row)


def pair_sentences(pairs: Sequence[Pair]) -> Iterator[str]:
    """What the comparisons are."""
    if not pairs:
        return
    unit = _cluster_name(pairs[0].first)
    yield (
        "Difference: accuracy of the first minus that of the second, in points, each the mean over the "
        f"network's seeds. The interval is a bootstrap over {unit}s."
    )
    yield (
        "p: exact paired permutation test, two-sided, over all exchanges of the two networks by "
        f"{unit}. Holm: adjusted for the {count(len(pairs), 'pair')} of this table."
    )
    if any(pair.single for pair in pairs):
        yield (
            "McNemar: exact, of two single models with the same seed; it takes images as independent and is "
            "not adjusted."
        )


def protocol_sentences(group: DataGroup) -> Iterator[str]:
    """What the columns mean, and what a reader must know of how the figures came about."""
    networks = group.networks
    if group.data in PUBLISHED:
        yield (
            "Published: Table 1 of the paper, which collected all but its own figure (resnet18_cbam) from "
            "five other papers and gives no protocol: neither folds, nor how the epoch was chosen, nor a "
            "deviation. Where the protocol differs, published and measured are no comparison."
        )
    measured = [network for network in networks if network.main is not None]
    if not measured:
        return
    yield (
        f"95 % interval: bootstrap over {_cluster_name(measured[0])}s of the accuracy, averaged over the "
        "seeds. It says nothing of what another seed would give: that is the seed sd, the standard deviation "
        "over the seeds."
    )
    if measured[0].folds:
        poolings = sum(len(one.main.scores["seeds"]) for one in measured if one.main and one.main.scores)
        yield (
            "Every fold is held out once by models that were trained without it, and a seed's predictions "
            "are pooled and scored once. This table rests on "
            f"{count(poolings, 'pooled run')}; whoever quotes it states how many more were made."
        )
    if any(not network.folds and network.main and network.main.split == "val" for network in measured):
        yield (
            "(val): the split on which the epoch was chosen, so the figure leans upward and stands beside no "
            "published one; test was not scored."
        )
    often = [f"{one.name} ({one.test_scorings} times)" for one in networks if one.test_scorings > 1]
    if often:
        yield f"Test was scored more than once by a run of {', '.join(often)}: not independent any more."
    elif not measured[0].folds:
        most = max(one.test_scorings for one in measured)
        yield f"Test was scored {'at most once by any run' if most else 'by no run'}."
    if any(network.reconstruction() for network in networks):
        yield "Reconstruction: rebuilt from a description, since no table of the network's layers is public."


def open_sentences(networks: Sequence[Network]) -> Iterator[str]:
    """The runs that are not finished, and why as far as their folders tell."""
    for network in networks:
        for run in network.open_runs:
            yield f"{run.name}: {run.state}{f': {run.reason}' if run.reason else ''}"


def p_value(p: float) -> Number:
    """A p-value with two digits that mean something."""
    return Number(f"{p:.1e}" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}")


def _cluster_name(network: Network) -> str:
    subjects = network.beton.subject
    held_out = network.beton.fold >= 0 if network.folds else network.beton.split >= 0
    return "subject" if (subjects[held_out] >= 0).all() else "copy group"


def _yes_no(value: bool | None) -> str:
    return MISSING if value is None else "yes" if value else "no"
