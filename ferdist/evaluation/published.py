"""What others published: the paper's Table 1, and scores on really occluded and turned faces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ferdist.config import OWN_LABELS, Config
from ferdist.data.namelists import SUBSETS
from ferdist.evaluation.records import Evaluation
from ferdist.models.config import ModelConfig
from ferdist.table import Cells, Number, Table, count, percent, percent_interval

PUBLISHED: Final[dict[str, dict[str, float]]] = {
    "fer2013": {
        "resnet18_cbam": 0.7486,
        "alexnet": 0.6887,
        "mianet": 0.7228,
        "kernel_cnn": 0.6500,
        "aprnet50": 0.7300,
        "vgg16": 0.6040,
    },
    "ckplus": {
        "resnet18_cbam": 0.9612,
        "alexnet": 0.9417,
        "mianet": 0.9576,
        "kernel_cnn": 0.8437,
        "aprnet50": 0.9495,
        "vgg16": 0.9065,
    },
}
"""Accuracy by data set and network. ``resnet18_cbam`` is the paper's own; it collected the others from five
papers, and gives no protocol for any: neither folds, nor how the epoch was chosen, nor a deviation."""


OWN: Final = "resnet18_cbam"
"""The paper's own network, which it trains on occluded faces."""


def published_accuracy(data: str, config: Config) -> float | None:
    """What the paper gives for what a config trains: nothing for pretrained weights, FER+'s labels (an easier
    task), nor for its own network of another width or where no face is occluded."""
    occludes = config.augment.enabled and config.augment.occlusion.probability > 0
    whole = config.model.width == ModelConfig().width
    if config.model.pretrained or config.data.labels != OWN_LABELS:
        return None
    if config.model.name == OWN and not (occludes and whole):
        return None
    return PUBLISHED.get(data, {}).get(config.model.name)


# Really occluded and turned faces


@dataclass(frozen=True)
class System:
    """A published system, with its accuracy on the faces of published lists.

    Attributes:
        start: the weights that its training started from; "" where what was read does not say.
        source: what was read: ferdist's authors had these texts, not all papers.
        quoted: whether that is another text than its authors'.
        accuracy: by the list's data set and subset.
    """

    name: str
    start: str
    source: str
    quoted: bool
    accuracy: Mapping[tuple[str, str], float]


FACE_RECOGNITION: Final = "face recognition"
_SUN: Final = "github.com/PeiwenSun2000/Region-Attention-Networks-..., README, 2021"
_D3FER: Final = "a summary of D3FER's Table 2"
_LATENT_OFER: Final = "Latent-OFER, ICCV 2023, Tables 5 and 6"

REAL_FACES: Final = (
    System(
        "D3FER (CVPR 2026)",
        FACE_RECOGNITION,
        "a summary of its Table 2",
        True,
        {
            ("rafdb", "occluded"): 0.8748,
            ("ferplus", "occluded"): 0.8760,
            ("affectnet", "occluded"): 0.6310,
            ("affectnet", "turned45"): 0.6193,
        },
    ),
    System(
        "IGKD",
        FACE_RECOGNITION,
        "github.com/lzh-captain/Information-Gap-based-Knowledge-Distillation, README",
        False,
        {
            ("rafdb", "occluded"): 0.8757,
            ("ferplus", "occluded"): 0.8733,
            ("affectnet", "occluded"): 0.6486,
        },
    ),
    System(
        "Latent-OFER (ICCV 2023)",
        FACE_RECOGNITION,
        "the paper, Tables 5 and 6; AffectNet with 7 classes",
        False,
        {("rafdb", "occluded"): 0.842, ("affectnet", "occluded"): 0.661},
    ),
    System(
        "PCNN's weights, scored by others",
        "",
        "github.com/lbzrx721-beep/PCNNLB, AUTHOR_WEIGHTS_EVAL_RESULTS.md, 2026",
        False,
        {("rafdb", "occluded"): 629 / 734, ("ferplus", "occluded"): 497 / 605},
    ),
    System("DSAN", "", _D3FER, True, {("ferplus", "occluded"): 0.8661, ("affectnet", "turned45"): 0.6132}),
    System("CC-KD", "", _D3FER, True, {("rafdb", "occluded"): 0.8612}),
    System("VTFF", "", _D3FER, True, {("affectnet", "occluded"): 0.6298}),
    System("OADN", "", _LATENT_OFER, True, {("affectnet", "occluded"): 0.640}),
    System(
        "RAN (IEEE TIP 2020)",
        FACE_RECOGNITION,
        f"{_LATENT_OFER}; on FERPlus without a source that we could read",
        True,
        {
            ("rafdb", "occluded"): 0.827,
            ("ferplus", "occluded"): 0.8363,
            ("affectnet", "occluded"): 0.585,
        },
    ),
    System(
        "RAN by Sun (2021), EX1",
        FACE_RECOGNITION,
        _SUN,
        False,
        {
            ("ferplus", "occluded"): 498 / 605,
            ("ferplus", "turned"): 1018 / 1170,
            ("ferplus", "turned45"): 541 / 633,
        },
    ),
    System(
        "RAN by Sun (2021), EX4",
        "random weights",
        _SUN,
        False,
        {
            ("ferplus", "occluded"): 485 / 605,
            ("ferplus", "turned"): 978 / 1170,
            ("ferplus", "turned45"): 517 / 633,
        },
    ),
)
"""Accuracies as they were read; fractions where the number of right answers was."""


def real_faces_table(measured: Iterable[tuple[str, str, Evaluation]]) -> Table:
    """Scores on the faces of published lists, each with the published ones below it.

    Args:
        measured: name of the model, the weights that it started from, and an evaluation; those of other
            subsets, and those whose list is not recorded, are left out.

    Returns:
        A row for each evaluation and, where it was scored by the list's labels, for each published score of
        these faces; accuracies in percent.
    """
    groups: dict[tuple[str, str], list[tuple[str, str, Evaluation]]] = {}
    for one in measured:
        if (listed := one[2].listed) is not None:
            groups.setdefault((listed.data, one[2].subset), []).append(one)
    return Table.of("Really occluded and turned faces, in percent", _rows(groups))


def _rows(groups: Mapping[tuple[str, str], list[tuple[str, str, Evaluation]]]) -> Iterator[Cells]:
    for (data, subset), rows in groups.items():
        part = subset.removesuffix("_no_copies")
        faces = SUBSETS.get(part, part).replace("turned by more than", "turned >")
        faces += "" if part == subset else ", no copies"
        by_list = False
        for name, start, one in rows:
            assert one.listed is not None  # `real_faces_table` has chosen them
            by_list |= one.listed.labels == "list"
            score = "measured" if one.seeds == 1 else f"measured, mean of {one.seeds} seeds"
            yield {
                "Faces": faces,
                "Model": name,
                "Accuracy": percent(one.accuracy, 2),
                "95 % interval": percent_interval(one.interval, 2),
                "Scored": count(one.samples),
                "Names met": Number(f"{one.listed.met:,} of {one.listed.names:,}"),
                "Lines": count(one.listed.lines),
                "Views": one.tta if one.tta != "none" else None,
                "Score": score if one.listed.labels == "list" else f"{score}, by the data's labels",
                "Started from": start or None,
            }
        known = [system for system in REAL_FACES if by_list and (data, subset) in system.accuracy]
        for system in sorted(known, key=lambda system: -system.accuracy[data, subset]):
            yield {
                "Faces": faces,
                "Model": system.name,
                "Accuracy": percent(system.accuracy[data, subset], 2),
                "Score": "quoted" if system.quoted else "published",
                "Started from": system.start or None,
            }
