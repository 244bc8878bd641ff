"""A data set on disk: list it, split it by subject, and check every sequence before it is used.

The layout is OpenGait's: ``<root>/<subject>/<type>/<view>/*.pkl``, and a partition JSON with the
subjects of ``TRAIN_SET`` and ``TEST_SET``. In CASIA-B some sequences are missing and some
are very short. Both are listed here, and a run continues without them.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from gaitlib.data.mapped_file import map_sequences
from gaitlib.data.partition import SPLITS, read_partition
from gaitlib.data.sequence_file import SequenceError, read_sequence, try_to_read, write_sequence
from gaitlib.system.errors import UserError

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
    "stored_size",
    "write_sequence",
]

logger = logging.getLogger(__name__)

VIEWS = tuple(f"{angle:03d}" for angle in range(0, 181, 18))
TYPES = (*(f"nm-{n:02d}" for n in range(1, 7)), "bg-01", "bg-02", "cl-01", "cl-02")
SUBJECTS_TO_ASK = 5  # for the size of their frames
PROBLEM_COLUMNS = ["subject", "type", "view", "path", "problem"]


def index_tree(
    root: str | Path, subjects: Sequence[str] | None = None, file_in_use: int | None = None
) -> pd.DataFrame:
    """List the sequences under ``root``, without opening them.

    A folder with several pickles needs a choice, unless one of them is named after the view.

    Args:
        root: the folder that holds one folder per subject.
        subjects: only these; all by default.
        file_in_use: which of a sequence's files to read, counted from 0 in the order of their
            names (OpenGait's ``data_in_use``); by default ``<view>.pkl``, or the only one.

    Returns:
        One row per sequence, sorted, with the text columns subject, type, view, path and problem:
        why no file can be chosen, else "".

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
                path, problem = _choose_file(folder, file_in_use)
                if path is not None:  # missing_sequences lists it otherwise
                    rows.append((subject, kind, view, str(path), problem))
    if not rows:
        raise FileNotFoundError(
            f"no sequence <subject>/<type>/<view>/*.pkl under {root}"
            + ("" if subjects is None else f" for the subjects {join_some(names)}")
            + "; make it with `gaitlib pretreat` from raw frames, or with `gaitlib walkers`"
        )
    return pd.DataFrame(rows, columns=PROBLEM_COLUMNS, dtype=str)


def _choose_file(folder: Path, file_in_use: int | None) -> tuple[Path | None, str]:
    """Return a sequence's file and "", or its folder and why none can be chosen; None if empty."""
    usual = folder / f"{folder.name}.pkl"
    if file_in_use is None and usual.is_file():
        return usual, ""
    files = sorted(path for path in folder.glob("*.pkl") if not path.name.startswith("."))
    if file_in_use is not None and file_in_use < len(files):
        return files[file_in_use], ""
    if file_in_use is None and len(files) == 1:
        return files[0], ""
    if not files:
        return None, ""
    names = join_some([path.name for path in files])
    if file_in_use is not None:
        return folder, f"data_cfg.data_in_use asks for file {file_in_use} (from 0) of {names}"
    return folder, (
        f"{len(files)} pickles ({names}): say with data_cfg.data_in_use which one holds the "
        "silhouettes"
    )


def stored_size(root: Path, file_in_use: int | None = None) -> tuple[int, int] | None:
    """Return the rows and columns of a data set's frames, from one sequence of some subjects.

    Args:
        root: the folder of the subjects.
        file_in_use: see :func:`index_tree`.

    Returns:
        The usual size among them; None if there is no readable sequence.
    """
    sizes = Counter()
    subjects = _folders(root) if root.is_dir() else []
    for subject in subjects[:: max(1, len(subjects) // SUBJECTS_TO_ASK)]:
        frames = _first_sequence(root / subject, file_in_use)
        if frames is not None:
            sizes[frames.shape[1:]] += 1
    return sizes.most_common(1)[0][0] if sizes else None


def _first_sequence(subject: Path, file_in_use: int | None) -> np.ndarray | None:
    """Return the first readable sequence of a subject's first folders."""
    for kind in _folders(subject)[:3]:
        for view in _folders(subject / kind)[:3]:
            path, problem = _choose_file(subject / kind / view, file_in_use)
            if path is not None and not problem:
                frames = try_to_read(path)[0]
                if frames is not None:
                    return frames
    return None


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
        table: rows with subject, type, view and path, as from :func:`index_tree`, which may also
            say in ``problem`` why a row has no file.
        cache: True keeps the frames in memory (4 kB per frame). A folder memory-maps one file of
            all frames there, and makes that file if needed: see `gaitlib.data.mapped_file`.
        min_frames: omit sequences shorter than this.
        workers: reading threads.

    Attributes:
        table: subject, type, view, path and frames (a count) of the usable ones, index 0 to n-1.
        problems: subject, type, view, path and problem of the omitted ones.
        subjects: the subjects of ``table``, sorted; a label is a position in it.
        labels: ``(len,)`` int64.
        frame_size: rows and columns of every frame.

    Raises:
        UserError: no sequence is usable, or ``cache`` is text.
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
            raise UserError(f"cache is {cache!r}: give True, False, or a Path to a folder")
        count, unclear = len(table), table.iloc[:0].reindex(columns=PROBLEM_COLUMNS)
        if "problem" in table:
            unclear = table.loc[table["problem"] != "", PROBLEM_COLUMNS]
            table = table[table["problem"] == ""].drop(columns="problem")
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
        found = table.loc[bad].assign(problem=[faults[i] for i in bad])[PROBLEM_COLUMNS]
        self.problems = pd.concat([unclear, found], ignore_index=True)
        reasons = [
            row.problem if row.path in row.problem else f"{row.path}: {row.problem}"
            for row in self.problems.itertuples()
        ]
        if not good:
            raise UserError(
                f"none of {count} sequences can be used: if their files are damaged, make them "
                "again (`gaitlib pretreat`, or `gaitlib walkers` for walkers); if they are no "
                "silhouettes, choose others with data_cfg.data_in_use"
                + (f". The first: {reasons[0]}" if reasons else "")
            )
        if reasons:
            logger.warning(
                "%d of %d sequences are left out: %s",
                len(reasons),
                count,
                join_some(reasons, separator="; "),
            )
        self.table = table.loc[good, ["subject", "type", "view", "path"]].reset_index(drop=True)
        self.table["frames"] = [shapes[i][0] for i in good]
        self.subjects = sorted(self.table["subject"].unique())
        self.labels = np.searchsorted(self.subjects, self.table["subject"].tolist()).astype(
            np.int64
        )
        self._shapes = [shapes[i] for i in good]
        self.frame_size = tuple(self._shapes[0][1:])
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
        train, test: sequences of disjoint subjects; ``train.labels`` are the classes. A test alone
            has no training set.
        lists: the partition's lists of test sequences, such as PROBE_SET.
    """

    name: str
    train: SilhouetteDataset | None
    test: SilhouetteDataset
    lists: Mapping[str, Sequence[str]] = field(default_factory=dict)


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
    file_in_use: int | None = None,
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
        file_in_use: see :func:`index_tree`.

    Raises:
        FileNotFoundError: ``root`` is absent, or holds no sequence of the split.
        UserError: the split is unknown, the partition is invalid or names no subject for it, or no
            sequence is usable.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; choose from {list(SPLITS)}")
    on_disk = _subjects_on_disk(Path(root))
    source = "the partition"
    if not isinstance(partition, Mapping):
        source = f"the partition {partition}"
        partition = read_partition(partition)
    wanted = partition[split]
    if not wanted:
        raise UserError(f"{split} of {source} lists no subject: name at least one")
    table = index_tree(root, wanted, file_in_use)
    dataset = SilhouetteDataset(table, cache=cache, min_frames=min_frames, workers=workers)
    listed = {subject for side in SPLITS for subject in partition[side]}
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
