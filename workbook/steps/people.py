"""The people of a deployment: those to enrol, and strangers to set and to check the threshold."""

from dataclasses import dataclass

import pandas as pd

from gaitlib.data.casia_b import SilhouetteDataset, load_split
from gaitlib.evaluate.roles import assign_roles
from workbook.config import ConfigError, Experiment
from workbook.runs import data_folder
from workbook.steps.dataset import drawing_of, make_walkers, open_data

ENROLLED = 10
STRANGERS_PER_PERSON = 3  # half set the threshold, half check it
TYPES = ("nm-01", "bg-01", "cl-01")  # that strangers walk
EVERY = 3  # one view in so many is enrolled


@dataclass(frozen=True)
class People:
    """Walks of people never seen in training.

    Attributes:
        enrolled: of known people, to enrol.
        probes: of the same people from other views, to identify.
        held_out: of strangers, from the views of ``probes``; they set the threshold.
        strangers: of further strangers from these views, to count false accepts.
    """

    enrolled: SilhouetteDataset
    probes: SilhouetteDataset
    held_out: SilhouetteDataset
    strangers: SilhouetteDataset


def open_people(experiment: Experiment, progress: bool = False) -> People:
    """Open the walks of the first ten test subjects, and of strangers.

    The protocol's gallery is enrolled from one view in three: of CASIA-B's eleven 000, 054, 108 and
    162. Its probes are identified from the other views. Strangers are the other test subjects. For
    walkers they are drawn, three for each person, with another seed.

    Args:
        experiment: its test set and its protocol are used.
        progress: draw a bar while walkers are generated.

    Raises:
        ConfigError: the test set has too few subjects.
    """
    data = open_data(experiment, progress, test_alone=True)
    table = data.test.table
    roles = assign_roles(table, experiment.protocol, data.lists).values()
    probe, gallery = (
        pd.Series(table.index.isin([row for rows in roles for row in rows[side]]))
        for side in (0, 1)
    )
    views = sorted(table["view"].unique())
    if len(views) > 1:
        enrolled = table["view"].isin(views[::EVERY])
        gallery, probe = gallery & enrolled, probe & ~enrolled
    names, others = data.test.subjects[:ENROLLED], data.test.subjects[ENROLLED:]
    known = table["subject"].isin(names)
    known_walks = SilhouetteDataset(table[gallery & known]), SilhouetteDataset(table[probe & known])
    if experiment.data_cfg.walker is not None:
        seen = sorted(table.loc[probe, "view"].unique())
        count = STRANGERS_PER_PERSON * len(names)
        return People(*known_walks, *_drawn_strangers(experiment, count, seen, progress))
    if len(others) < 2:
        raise ConfigError(
            f"{data.name} has {len(data.test.subjects)} test subjects: {ENROLLED} are enrolled, "
            "and at least 2 more are needed as strangers"
        )
    middle = len(others) // 2
    halves = (table["subject"].isin(half) for half in (others[:middle], others[middle:]))
    return People(*known_walks, *(SilhouetteDataset(table[probe & half]) for half in halves))


def _drawn_strangers(
    experiment: Experiment, count: int, views: list[str], progress: bool
) -> tuple[SilhouetteDataset, ...]:
    walker = experiment.data_cfg.walker
    walker = walker.model_copy(update={"seed": walker.seed + 1})
    name = f"strangers-{count}x{drawing_of(walker)}-{len(views)}views"
    root = make_walkers(
        data_folder() / name,
        subjects=count,
        train=count // 2,
        types=TYPES,
        views=views,
        frames=walker.frames,
        frame_step=walker.frame_step,
        seed=walker.seed,
        noise=walker.noise,
        progress=progress,
    )
    partition = root / "partition.json"
    return tuple(load_split(root, partition, half) for half in ("TRAIN_SET", "TEST_SET"))
