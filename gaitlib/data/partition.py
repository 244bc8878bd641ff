"""The partition JSON: the subjects to train on, those to test on, and lists of sequences."""

from collections import Counter
from pathlib import Path

from gaitlib.system.errors import UserError
from gaitlib.system.files import read_json

SPLITS = ("TRAIN_SET", "TEST_SET")


def read_partition(path: str | Path) -> dict[str, list[str]]:
    """Read a partition JSON.

    Args:
        path: a file ``{"TRAIN_SET": ["001", ...], "TEST_SET": ["075", ...]}``.

    Returns:
        The two lists of subjects, and every other list of text in the file (such as PROBE_SET), in
        the file's order.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is not JSON, lacks a set, or lists a subject twice; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no partition file at {path}; set data_cfg.dataset_partition to one"
        )
    partition = read_json(path)
    if not isinstance(partition, dict):
        raise UserError(
            f"the partition {path} is a {type(partition).__name__}, not an object with {SPLITS}"
        )
    for split in SPLITS:
        subjects = partition.get(split)
        if subjects is None:
            raise UserError(f"the partition {path} has no {split}; it has {sorted(partition)}")
        if not isinstance(subjects, list) or not all(isinstance(s, str) for s in subjects):
            raise UserError(f'{split} in {path} must list subjects as text, like ["001", "002"]')
        repeated = sorted(s for s, times in Counter(subjects).items() if times > 1)
        if repeated:
            raise UserError(f"{split} in {path} lists {repeated} more than once")
    both = sorted(set(partition["TRAIN_SET"]) & set(partition["TEST_SET"]))
    if both:
        raise UserError(f"subjects {both} are in both sets of {path}: a test subject must be new")
    others = {
        name: values
        for name, values in partition.items()
        if isinstance(values, list) and all(isinstance(value, str) for value in values)
    }
    return others | {split: partition[split] for split in SPLITS}
