"""Open the data set of a study, and make it first if it is the embedded one."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gaitlib import distributed, runs
from gaitlib.config import ConfigError, Study
from gaitlib.data.casia_b import SilhouetteDataset, load_split
from gaitlib.data.sampler import training_batches
from gaitlib.data.transforms import Transform, build_transform
from gaitlib.data.walker import make_walkers

#: An iteration that no training comes to.
BEYOND = 2**31


@dataclass(frozen=True)
class StudyData:
    """The two halves of a data set.

    Attributes:
        name: what results.json calls it.
        train, test: sequences of disjoint subjects; ``train.labels`` are the classes.
    """

    name: str
    train: SilhouetteDataset
    test: SilhouetteDataset


def dataset_paths(study: Study, progress: bool = False) -> tuple[str, Path, Path]:
    """Return a data set's name, folder and partition file; walkers are made if need be.

    Relative paths start at the working folder, or else at the project's own.
    """
    cfg, walker = study.data_cfg, study.data_cfg.walker
    if walker is None:
        return cfg.dataset_name, locate(cfg.dataset_root), locate(cfg.dataset_partition)
    fewest, most = walker.frames
    name = f"walker-{walker.subjects}x{fewest}-{most}-seed{walker.seed}-noise{walker.noise:g}"
    root = (
        locate(cfg.dataset_root)
        if cfg.dataset_root
        else (runs.DATA / f"{name}-train{walker.train}")
    )
    with distributed.one_first():
        make_walkers(root, **walker.model_dump(), progress=progress)
    return name, root, locate(cfg.dataset_partition or str(root / "partition.json"))


def locate(path: str | None) -> Path:
    """Return an absolute path: relative ones start here, or else at the project's folder."""
    here = Path(path or "").expanduser()
    return here if here.is_absolute() or here.exists() else runs.ROOT / here


def open_data(study: Study, progress: bool = False) -> StudyData:
    """Read, check and count the sequences of a study, or open the file that holds them mapped.

    Raises:
        ConfigError: if the network's classes or the sampler do not fit the training subjects.
        OSError: if ``data_cfg.cache: mapped`` has no room.
    """
    name, root, partition = dataset_paths(study, progress)
    mapped = study.data_cfg.cache == "mapped"
    cache = runs.DATA / "mapped" if mapped else study.data_cfg.cache
    with distributed.one_first() if mapped else contextlib.nullcontext():
        train, test = (
            load_split(root, partition, split, cache=cache) for split in ("TRAIN_SET", "TEST_SET")
        )
    try:
        study.check_subjects(len(train.subjects))
        for section in (study.trainer_cfg, study.evaluator_cfg):
            transform_of(section)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    return StudyData(name, train, test)


def calibration_clips(study: Study, data: StudyData, *, seed: int, count: int = 8) -> list[Tensor]:
    """Return batches of training clips as the network takes them, float32 ``(N, T, H, W)``.

    They are drawn like those of training, from iterations that no training sees, and not augmented.
    """
    sampler = study.trainer_cfg.sampler
    settings = sampler.model_dump(include={"batch_size", "frames_num_fixed"})
    transform = transform_of(study.evaluator_cfg)
    batches = training_batches(data.train, **settings, seed=seed, start=BEYOND, stop=BEYOND + count)
    return [transform(batch.clips) for batch in batches]


def transform_of(section: Any) -> Transform:
    """Build the transform of a trainer_cfg or evaluator_cfg."""
    return build_transform([transform.model_dump() for transform in section.transform])
