"""CASIA-B-pkl on disk: list it, split it by subject, and check every sequence before it is used.

The layout is OpenGait's: ``<root>/<subject>/<type>/<view>/<view>.pkl``, and a partition JSON with
the subjects of ``TRAIN_SET`` and ``TEST_SET``. In the real set some sequences are missing and some
are very short. Both are listed here, and a run continues without them.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from gaitlib.data.mapped_file import map_sequences
from gaitlib.data.partition import SPLITS, read_partition
from gaitlib.data.sequence_file import SequenceError, read_sequence, try_to_read, write_sequence

__all__ = [
    "TYPES",
    "VIEWS",
    "DataSplit",
    "SequenceError",
    "SilhouetteDataset",
    "index_tree",
    "join_some",
    "load_split",
    "missing_sequences",
    "read_partition",
    "read_sequence",
    "write_sequence",
]

logger = logging.getLogger(__name__)

VIEWS = tuple(f"{angle:03d}" for angle in range(0, 181, 18))
TYPES = (*(f"nm-{n:02d}" for n in range(1, 7)), "bg-01", "bg-02", "cl-01", "cl-02")
PROBLEM_COLUMNS = ["subject", "type", "view", "path", "problem"]


def index_tree(root: str | Path, subjects: Sequence[str] | None = None) -> pd.DataFrame:
    """List the sequences under ``root``, without opening them.

    Args:
        root: the folder that holds one folder per subject.
        subjects: only these; all by default.

    Returns:
        One row per sequence, sorted, with the text columns subject, type, view and path.

    Raises:
        FileNotFoundError: ``root`` is absent, or holds no sequence of these subjects.
    """
    root = Path(root)
    names = on_disk = _subjects_on_disk(root)
    if subjects is not None:
        names = [name for name in names if name in set(subjects)]
        if not names:
            raise FileNotFoundError(
                f"none of the {len(subjects)} subjects asked for ({join_some(sorted(subjects))}) "
                f"is under {root}, which holds {join_some(on_disk) or 'no folder'}: set "
                "data_cfg.dataset_root to the folder of the subjects, or data_cfg."
                "dataset_partition to a file that lists them"
            )
    rows = []
    for subject in names:
        for kind in _folders(root / subject):
            for view in _folders(root / subject / kind):
                folder = root / subject / kind / view
                path = folder / f"{view}.pkl"
                if not path.is_file():
                    others = sorted(p for p in folder.glob("*.pkl") if not p.name.startswith("."))
                    if not others:
                        continue  # missing_sequences lists it
                    path = others[0]
                rows.append((subject, kind, view, str(path)))
    if not rows:
        raise FileNotFoundError(
            f"no sequence <subject>/<type>/<view>/<view>.pkl under {root}"
            + ("" if subjects is None else f" for the subjects {join_some(names)}")
            + "; make it with `gaitlib pretreat` from raw frames, or with `gaitlib walkers`"
        )
    return pd.DataFrame(rows, columns=["subject", "type", "view", "path"], dtype=str)


def missing_sequences(
    table: pd.DataFrame, types: Sequence[str] = TYPES, views: Sequence[str] = VIEWS
) -> pd.DataFrame:
    """List the type and view pairs that a subject of ``table`` lacks.

    Args:
        table: rows with subject, type and view, as from :func:`index_tree`.
        types: the types a complete subject has.
        views: the views a complete type has.

    Returns:
        The missing ones: subject, type and view, sorted.
    """
    present = set(table[["subject", "type", "view"]].itertuples(index=False, name=None))
    rows = [
        (subject, kind, view)
        for subject in sorted(table["subject"].unique())
        for kind in sorted(types)
        for view in sorted(views)
        if (subject, kind, view) not in present
    ]
    return pd.DataFrame(rows, columns=["subject", "type", "view"], dtype=str)


class SilhouetteDataset:
    """The usable sequences of some subjects; ``problems`` lists the others.

    Every file is read once here, in threads, to check it and to count its frames. A mapped file was
    checked when it was made.

    Args:
        table: rows with subject, type, view and path, as from :func:`index_tree`.
        cache: True keeps the frames in memory (4 kB per frame). A folder memory-maps one file of
            all frames there, and makes that file if needed: see `gaitlib.data.mapped_file`.
        min_frames: omit sequences shorter than this.
        workers: reading threads.

    Attributes:
        table: subject, type, view, path and frames (a count) of the usable ones, index 0 to n-1.
        problems: subject, type, view, path and problem of the omitted ones.
        subjects: the subjects of ``table``, sorted; a label is a position in it.
        labels: ``(len,)`` int64.

    Raises:
        ValueError: no sequence is usable, or ``cache`` is text.
        OSError: a mapped file cannot be written.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        *,
        cache: bool | Path = False,
        min_frames: int = 1,
        workers: int = 2,
    ) -> None:
        if isinstance(cache, str):
            raise ValueError(f"cache is {cache!r}: give True, False, or a Path to a folder")
        table = table.reset_index(drop=True)
        if isinstance(cache, Path):
            cached = map_sequences(cache, table["path"], workers)
            shapes, faults = cached.shapes, list(cached.faults)
        else:
            cached, shapes, faults = _read(table["path"], cache, workers)
        for i, shape in enumerate(shapes):
            if not faults[i] and shape[0] < min_frames:
                faults[i] = f"{shape[0]} frames, fewer than {min_frames}"
        sizes = Counter(s[1:] for s, fault in zip(shapes, faults, strict=True) if not fault)
        if len(sizes) > 1:
            usual = sizes.most_common(1)[0][0]
            for i, shape in enumerate(shapes):
                if not faults[i] and shape[1:] != usual:
                    faults[i] = f"frames of {shape[1:]}, the others have {usual}"
        good = [i for i, fault in enumerate(faults) if not fault]
        bad = [i for i, fault in enumerate(faults) if fault]
        self.problems = table.loc[bad].assign(problem=[faults[i] for i in bad])[PROBLEM_COLUMNS]
        self.problems = self.problems.reset_index(drop=True)
        if not good:
            raise ValueError(
                f"none of {len(table)} sequences can be used: delete them and make them again "
                "(`gaitlib pretreat`, or `gaitlib walkers` for walkers)"
                + (f". The first: {faults[0]}" if faults else "")
            )
        if bad:
            paths = table["path"]
            reasons = [f if paths[i] in (f := faults[i]) else f"{paths[i]}: {f}" for i in bad]
            logger.warning(
                "%d of %d sequences are left out: %s",
                len(bad),
                len(table),
                join_some(reasons, separator="; "),
            )
        self.table = table.loc[good, ["subject", "type", "view", "path"]].reset_index(drop=True)
        self.table["frames"] = [shapes[i][0] for i in good]
        self.subjects = sorted(self.table["subject"].unique())
        self.labels = np.searchsorted(self.subjects, self.table["subject"].tolist()).astype(
            np.int64
        )
        self._shapes = [shapes[i] for i in good]
        self._cached, self._positions = cached, good

    def __len__(self) -> int:
        return len(self.table)

    def sequence(self, index: int) -> np.ndarray:
        """Return the frames of one sequence, ``(T, H, W)`` uint8. Do not write to them.

        Raises:
            SequenceError: the file has changed since it was checked.
        """
        if self._cached is not None:
            return self._cached[self._positions[index]]
        path = self.table["path"].iat[index]
        frames = read_sequence(path)
        if frames.shape != self._shapes[index]:
            raise SequenceError(
                f"{path} changed while it was in use: it held {self._shapes[index]} frames, rows "
                f"and columns, and now {frames.shape}; start again"
            )
        return frames


@dataclass(frozen=True)
class DataSplit:
    """The two halves of a data set.

    Attributes:
        name: its name in results.json.
        train, test: sequences of disjoint subjects; ``train.labels`` are the classes.
    """

    name: str
    train: SilhouetteDataset
    test: SilhouetteDataset


def _read(
    paths: pd.Series, cache: bool, workers: int
) -> tuple[list[np.ndarray | None] | None, list[tuple[int, ...]], list[str]]:
    """Return the sequences (None without ``cache``), their shapes, and their faults."""

    def read(path: str) -> tuple[np.ndarray | None, tuple[int, ...], str]:
        frames, fault = try_to_read(path)
        return frames if cache else None, () if frames is None else frames.shape, fault

    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = list(pool.map(read, paths))
    sequences, shapes, faults = ([entry[i] for entry in found] for i in range(3))
    return sequences if cache else None, shapes, faults


def load_split(
    root: str | Path,
    partition: str | Path | Mapping[str, Sequence[str]],
    split: str,
    *,
    cache: bool | Path = False,
    min_frames: int = 1,
    workers: int = 2,
) -> SilhouetteDataset:
    """Load the sequences of one side of a partition.

    Subjects of the partition that are not on disk, and subjects on disk that are in neither set,
    are logged and listed in ``problems`` with an empty type and view.

    Args:
        root: the folder that holds one folder per subject.
        partition: a partition JSON, or what :func:`read_partition` returns.
        split: ``"TRAIN_SET"`` or ``"TEST_SET"``.
        cache: see :class:`SilhouetteDataset`, like the following.
        min_frames: the shortest sequence to use.
        workers: reading threads.

    Raises:
        FileNotFoundError: ``root`` is absent, or holds no sequence of the split.
        ValueError: the split is unknown, the partition is invalid or names no subject for it, or no
            sequence is usable.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose from {list(SPLITS)}")
    on_disk = _subjects_on_disk(Path(root))
    source = "the partition"
    if not isinstance(partition, Mapping):
        source = f"the partition {partition}"
        partition = read_partition(partition)
    wanted = partition[split]
    if not wanted:
        raise ValueError(f"{split} of {source} lists no subject: name at least one")
    table = index_tree(root, wanted)
    dataset = SilhouetteDataset(table, cache=cache, min_frames=min_frames, workers=workers)
    listed = {subject for subjects in partition.values() for subject in subjects}
    notes = {s: f"in {split}, but not on disk" for s in wanted if s not in set(table["subject"])}
    notes |= {s: "on disk, but in neither set" for s in on_disk if s not in listed}
    if notes:
        logger.warning(
            "subjects under %s: %s", root, join_some([f"{s} {note}" for s, note in notes.items()])
        )
        rows = [(s, "", "", str(Path(root) / s), note) for s, note in sorted(notes.items())]
        notes_table = pd.DataFrame(rows, columns=PROBLEM_COLUMNS, dtype=str)
        dataset.problems = pd.concat([notes_table, dataset.problems], ignore_index=True)
    return dataset


def _folders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _subjects_on_disk(root: Path) -> list[str]:
    if not root.is_dir():
        raise FileNotFoundError(
            f"no data set at {root}; set data_cfg.dataset_root, or draw one with `gaitlib walkers`"
        )
    return _folders(root)


def join_some(items: Sequence[str], limit: int = 5, separator: str = ", ") -> str:
    """Join the first ``limit`` items for a message, and count the others."""
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + rest
