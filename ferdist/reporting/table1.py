"""Table 1: networks side by side, what was published beside what was measured, and paired comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ferdist.config import OWN_LABELS
from ferdist.errors import RunError
from ferdist.evaluation.metrics import quick_score
from ferdist.evaluation.model import default_checkpoint
from ferdist.evaluation.pool import SCORES, Pool
from ferdist.evaluation.predictions import join
from ferdist.evaluation.published import PUBLISHED, published_accuracy
from ferdist.models import is_reconstruction
from ferdist.reporting.networks import Network, Pair, compare_pairs
from ferdist.reporting.page import Section
from ferdist.reporting.words import SUBSETS, TTA, value_text
from ferdist.table import (
    MISSING,
    Cells,
    Number,
    Table,
    count,
    escape,
    percent,
    percent_interval,
    points,
    points_interval,
    short_count,
)

DIGITS: Final = 2
"""Decimals of accuracies in percent: as many as the published ones have."""


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
    """table1.md of experiments: for each data set the table, all scores, comparisons, what is missing."""
    lines = ["# Table 1", "", "Accuracy in percent.", ""]
    for group in groups:
        lines += [f"## {escape(group.data)}", "", published_table(group).markdown()]
        lines += [*(f"- {escape(sentence)}" for sentence in protocol_sentences(group)), ""]
        everything = scores_table(group.networks)
        if everything.rows:
            lines += [f"### {everything.caption}", "", everything.markdown()]
        if group.pairs or group.refused:
            lines += [pairs_markdown("###", group.pairs, group.refused)]
        missing = [f"- {escape(run)}" for network in group.networks for run in network.open_runs]
        lines += ["### Unfinished runs", "", *missing, ""] if missing else []
    return "\n".join(lines)


def pairs_markdown(level: str, pairs: Sequence[Pair], refused: Sequence[str]) -> str:
    """The comparisons under a heading of a level such as ``##``."""
    lines = [f"{level} Paired comparisons", ""]
    if pairs:
        lines += [pair_table(pairs).markdown()]
    lines += [f"- {escape(sentence)}" for sentence in (*pair_sentences(pairs), *refused)]
    return "\n".join([*lines, ""])


def table1_section(group: DataGroup) -> Section:
    """The networks on one data set beside what was published, compared in pairs."""
    unfinished = [run for network in group.networks for run in network.open_runs]
    return Section(
        f"table1-{group.data}",
        f"Table 1: {group.data}",
        tables=(published_table(group), pair_table(group.pairs)),
        folded_tables=(scores_table(group.networks),),
        folded_texts=[("Unfinished runs", "\n".join(unfinished))] if unfinished else (),
        points=(*protocol_sentences(group), *pair_sentences(group.pairs), *group.refused),
    )


def unfinished_remark(group: DataGroup) -> str:
    """How many runs of which networks are not finished; empty where all are."""
    totals = {one.name: len(one.runs) + len(one.open_runs) for one in group.networks}
    unfinished = {one.name: len(one.open_runs) for one in group.networks if one.open_runs}
    if not unfinished:
        return ""
    names = [
        name if number == totals[name] else f"{name} ({number} of {totals[name]})"
        for name, number in unfinished.items()
    ]
    number = sum(unfinished.values())
    return (
        f"{number} of {count(sum(totals.values()), 'run')} {'is' if number == 1 else 'are'} unfinished and "
        f"left out: {', '.join(names)}."
    )


def paired_section(pairs: Sequence[Pair], remarks: Sequence[str]) -> Section:
    """Runs compared in pairs."""
    table, points = pair_table(pairs), [*pair_sentences(pairs)]
    return Section("paired", "Paired comparisons", tables=(table,), missing=remarks, points=points)


def published_table(group: DataGroup) -> Table:
    """One row per network: those of the paper in its order, also where nothing was measured, then others."""
    rows: list[Cells] = []
    others = {network.name: network for network in group.networks}
    for model, accuracy in PUBLISHED.get(group.data, {}).items():
        own = [
            network
            for network in group.networks
            if network.model == model and published_accuracy(group.data, network.config) is not None
        ]
        rows += [_row(others.pop(network.name), accuracy) for network in own] or [_absent(model, accuracy)]
    rows += [_row(network, None) for network in others.values()]
    return Table.of(f"{group.data}: published and measured accuracy, in percent", rows)


def _row(network: Network, published: float | None) -> Cells:
    main, (parameters, products) = network.main, network.cost()
    scores = main.scores if main and main.scores else {}
    accuracy = scores.get("accuracy", {})
    on_val = f" ({main.split})" if main and main.split != "test" and not network.folds else ""
    return {
        "Network": network.name,
        "Published": percent(published, DIGITS),
        "Measured": Number(percent(accuracy.get("mean"), DIGITS) + on_val),
        "95 % interval": percent_interval(scores.get("accuracy_ci95"), DIGITS),
        "Seed sd": percent(accuracy.get("sd"), DIGITS),
        "Seeds": Number(len(scores["seeds"]) if scores else MISSING),
        "Parameters": Number(MISSING) if parameters is None else count(parameters),
        "Multiply-adds": Number(MISSING) if products is None else short_count(products),
        "Reconstruction": value_text(network.reconstruction()),
        "Protocol": protocol(network),
    }


def _absent(model: str, published: float) -> Cells:
    """The row of a published network that the report does not have."""
    return {
        "Network": model,
        "Published": percent(published, DIGITS),
        **dict.fromkeys(("Measured", "95 % interval", "Seed sd", "Seeds", "Parameters", "Multiply-adds")),
        "Reconstruction": value_text(is_reconstruction(model)),
        "Protocol": "missing: not in this report",
    }


def protocol(network: Network) -> str:
    """How a network's score was measured, in a few words; what is missing where there is none."""
    finished, unfinished = len(network.runs), len(network.open_runs)
    state = f"{finished} of {count(finished + unfinished, 'run')} finished"
    main = network.main
    if main is None:
        return f"missing: {state}"
    epochs = count(network.config.train.epochs, "epoch")
    picked = f"{'best' if _picks_best(network) else 'last'} of {epochs}"
    if network.folds:
        words = f"{network.folds} folds by {_cluster_name(network)}, {picked}"
    elif _picked_itself(network):
        words = f"{main.split}, which also picked the {picked}: biased upward"
    else:
        words = f"{main.split}, {picked}"
        words += f" on {network.config.data.holdout.validated}" if _picks_best(network) else ""
        words += f"; {_scorings(network)}" if main.split == "test" else ""
    if network.config.data.labels != OWN_LABELS:
        words += f"; labels {network.config.data.labels}"
    if network.config.model.pretrained:
        words += f"; started from {Path(network.config.model.pretrained).name}"
    return f"{words}; {state}" if unfinished else words


def _picked_itself(network: Network) -> bool:
    """Whether the best epoch was chosen on the very split that is quoted."""
    quoted = network.main and network.main.split
    return _picks_best(network) and quoted == network.config.data.holdout.validated


def _scorings(network: Network) -> str:
    times = network.test_scorings
    return "scored once" if times == 1 else f"SCORED {times} TIMES: not independent"


def scores_table(networks: Sequence[Network]) -> Table:
    """Everything that was measured on uncovered faces; a seed that lacks runs has a row of its own."""
    rows = [row for network in networks for pool in network.measured for row in _score_rows(network, pool)]
    return Table.of("All scores, in percent", rows)


def _score_rows(network: Network, pool: Pool) -> Iterator[Cells]:
    place: Cells = {
        "Network": network.name,
        "Scored on": f"{network.folds} folds" if network.folds else pool.split,
        "Subset": SUBSETS[pool.subset],
        "Unit": pool.unit,
        "Views": TTA[pool.tta],
    }
    if (scores := pool.scores) is not None:
        means = {name: scores[name]["mean"] for name in SCORES}
        seeds, interval, sd = len(scores["seeds"]), scores["accuracy_ci95"], scores["accuracy"]["sd"]
        yield {**place, **_score_cells(str(seeds), scores["samples"], means, interval, sd)}
    for seed, parts in pool.by_seed().items():
        together = join(parts)
        if len(parts) < pool.seed_runs and len(together.index):
            seeds_text = f"seed {seed}, {len(parts)} of {count(pool.seed_runs, 'fold')}"
            yield {**place, **_score_cells(seeds_text, len(together.index), quick_score(together))}


def _score_cells(
    seeds: str,
    samples: int,
    means: Mapping[str, float],
    interval: Sequence[float] | None = None,
    sd: float | None = None,
) -> Cells:
    return {
        "Seeds": Number(seeds),
        "Samples": count(samples),
        "Accuracy": percent(means["accuracy"], DIGITS),
        "95 % interval": percent_interval(interval, DIGITS),
        "Seed sd": percent(sd, DIGITS),
        "Balanced": percent(means["balanced_accuracy"], DIGITS),
        "Macro-F1": percent(means["macro_f1"], DIGITS),
    }


def pair_table(pairs: Sequence[Pair]) -> Table:
    """A row for each two networks that were compared."""
    return Table.of("Paired comparisons", map(_pair_row, pairs))


def _pair_row(pair: Pair) -> Cells:
    single, only = pair.single, None
    if single:
        only = Number(f"{single.only_first} / {single.only_second} (seed {pair.seed})")
    return {
        "First": pair.first.name,
        "Second": pair.second.name,
        "Scored on": f"{pair.first.folds} folds" if pair.first.folds else pair.split,
        "Difference": points(pair.difference.accuracy, DIGITS),
        "95 % interval": points_interval(pair.difference.interval, DIGITS),
        "With seeds": points_interval(seeds, DIGITS) if (seeds := pair.difference.seeds_interval) else None,
        "p": p_value(pair.difference.p),
        "p, Holm": p_value(pair.p_holm),
        "Only first / only second": only,
        "McNemar p": p_value(single.p) if single else None,
    }


def pair_sentences(pairs: Sequence[Pair]) -> Iterator[str]:
    """What the comparisons are."""
    if not pairs:
        return
    unit = _cluster_name(pairs[0].first)
    yield (
        "Difference: accuracy of the first minus that of the second, in points, each the mean over the "
        f"network's seeds. The interval is a bootstrap over {unit}s."
    )
    if any(pair.difference.seeds_interval for pair in pairs):
        yield (
            f"With seeds: the interval if seeds are resampled as well as {unit}s, so that it covers other "
            "trainings, too; with few seeds it is rough."
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
    """What the columns mean, and what a reader must know of how the scores were measured."""
    networks = group.networks
    if group.data in PUBLISHED:
        yield (
            "Published: Table 1 of the paper, which took all but its own accuracy (resnet18_cbam) from five "
            "other papers and states no protocol: neither folds, nor how the epoch was chosen, nor a "
            "deviation. Where protocols differ, published and measured accuracies are not comparable."
        )
    measured = [network for network in networks if network.main is not None]
    if not measured:
        return
    yield (
        f"95 % interval: bootstrap over {_cluster_name(measured[0])}s of the accuracy, averaged over the "
        "seeds. It does not cover the variation between seeds: that is the seed sd, the standard deviation "
        "over the seeds."
    )
    if measured[0].folds:
        poolings = sum(len(one.main.scores["seeds"]) for one in measured if one.main and one.main.scores)
        yield (
            "Every fold is held out once by models that were trained without it, and a seed's predictions "
            "are pooled and scored once. This table rests on "
            f"{count(poolings, 'pooled run')}; if you quote it, state how many more were made."
        )
    for split in ("val", "holdout"):
        scored = [one for one in measured if not one.folds and one.main and one.main.split == split]
        if scored:
            yield (
                f"({split}): a score of {split}, since test was not scored; do not compare it with a "
                "published one."
                + f" Where {split} also picked the epoch, it is biased upward."
                * any(map(_picked_itself, scored))
            )
    often = [f"{one.name} ({one.test_scorings} times)" for one in networks if one.test_scorings > 1]
    if often:
        yield f"Test was scored more than once by a run of {', '.join(often)}: no longer independent."
    elif not measured[0].folds:
        most = max(one.test_scorings for one in measured)
        yield f"Test was {'scored at most once by any run' if most else 'not scored by any run'}."
    yield "Multiply-adds: those of convolutions and matrix products, for one image."
    if any(network.reconstruction() for network in networks):
        yield "Reconstruction: rebuilt from a description, since no table of its layers is published."


def p_value(p: float) -> Number:
    """A p-value with two significant digits."""
    return Number(f"{p:.1e}" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}")


def _picks_best(network: Network) -> bool:
    """Whether its runs are evaluated with the epoch that did best on val."""
    return default_checkpoint(network.runs[0].config) == "best"


def _cluster_name(network: Network) -> str:
    subjects = network.beton.subject
    held_out = network.beton.fold >= 0 if network.folds else network.beton.split >= 0
    return "subject" if (subjects[held_out] >= 0).all() else "copy group"
