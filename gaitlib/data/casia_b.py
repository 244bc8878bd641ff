"""A data set on disk: list it, split it by subject, and check every sequence before it is used.

The layout is OpenGait's: ``<root>/<subject>/<type>/<view>/*.pkl``, and a partition JSON with the
subjects of ``TRAIN_SET`` and ``TEST_SET``. In CASIA-B some sequences are missing and some
are very short. Both are listed here, and a run continues without them.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from gaitlib.data.mapped_file import map_sequences
from gaitlib.data.partition import SPLITS, read_partition
from gaitlib.data.sequence_file import SequenceError, read_all, read_sequence, try_to_read
from gaitlib.system.errors import UserError

logger = logging.getLogger(__name__)

VIEWS = tuple(f"{angle:03d}" for angle in range(0, 181, 18))
TYPES = (*(f"nm-{n:02d}" for n in range(1, 7)), "bg-01", "bg-02", "cl-01", "cl-02")
SUBJECTS_TO_ASK, FOLDERS_TO_ASK = 5, 9  # for the size of their frames
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
        for folder in _sequence_folders(root / subject):
            path, problem = _choose_file(folder, file_in_use)
            if path is not None:  # missing_sequences lists it otherwise
                rows.append((*folder.parts[-3:], str(path), problem))
    if not rows:
        raise FileNotFoundError(
            f"no sequence <subject>/<type>/<view>/*.pkl under {root} for the subjects "
            f"{join_some(names)}; make it with `gaitlib pretreat` from raw frames, or with "
            "`gaitlib walkers`"
        )
    return pd.DataFrame(rows, columns=PROBLEM_COLUMNS, dtype=str)


def _choose_file(folder: Path, file_in_use: int | None) -> tuple[Path | None, str]:
    """Return a sequence's file and "", or its folder and why none can be chosen; None if empty."""
    usual = folder / f"{folder.name}.pkl"
    if file_in_use is None and usual.is_file():
        return usual, ""
    files = sorted(folder.glob("[!.]*.pkl"))
    names, position = join_some([path.name for path in files]), file_in_use or 0
    if not files:
        return None, ""
    if file_in_use is None and len(files) > 1:
        say = "say with data_cfg.data_in_use which one holds the silhouettes"
        return folder, f"{len(files)} pickles ({names}): {say}"
    if position >= len(files):
        return folder, f"data_cfg.data_in_use asks for file {position} (from 0) of {names}"
    return files[position], ""


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
        for folder in _sequence_folders(root / subject)[:FOLDERS_TO_ASK]:
            path, problem = _choose_file(folder, file_in_use)
            frames = None if path is None or problem else try_to_read(path)[0]
            if frames is not None:
                sizes[frames.shape[1:]] += 1
                break
    return max(sizes, key=sizes.get, default=None)


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
    columns = ["subject", "type", "view"]
    complete = [sorted(table["subject"].unique()), types, views]
    expected = pd.MultiIndex.from_product(complete, names=columns)
    return expected.difference(pd.MultiIndex.from_frame(table[columns])).to_frame(index=False)


class SilhouetteDataset:
    """The usable sequences of some subjects; ``problems`` lists the others.

    Every file is read once here, in threads, to check it and to count its frames. A mapped file was
    checked when it was made.

    Args:
        table: rows with subject, type, view and path, as from :func:`index_tree`, which may also
            say in ``problem`` why a row has no file.
        cache: True keeps the frames in memory (4 kB per frame). A folder memory-maps one file of
            all frames there, and makes that file if needed: see `gaitlib.data.mapped_file`.

    Attributes:
        table: subject, type, view, path and frames (a count) of the usable ones, index 0 to n-1.
        problems: subject, type, view, path and problem of the omitted ones.
        subjects: the subjects of ``table``, sorted; a label is a position in it.
        labels: ``(len,)`` int64.
        frame_size: rows and columns of every frame.

    Raises:
        UserError: no sequence is usable.
        OSError: a mapped file cannot be written.
    """

    def __init__(self, table: pd.DataFrame, *, cache: bool | Path = False) -> None:
        table = table.assign(problem=table.get("problem", "")).reset_index(drop=True)
        known = table["problem"] == ""
        if isinstance(cache, Path):
            cached = map_sequences(cache, table.loc[known, "path"])
            shapes, faults = cached.shapes, cached.faults
        else:
            cached = [] if cache else None
            keep = cached.append if cache else None
            shapes, faults = read_all(table.loc[known, "path"], keep)
        sizes = Counter(s[1:] for s, fault in zip(shapes, faults, strict=True) if not fault)
        usual = max(sizes, key=sizes.get, default=None)
        faults = [
            fault or ("" if s[1:] == usual else f"frames of {s[1:]}, the others have {usual}")
            for s, fault in zip(shapes, faults, strict=True)
        ]
        table.loc[known, "problem"] = faults
        good = table["problem"] == ""
        self.problems = table.loc[~good, PROBLEM_COLUMNS].reset_index(drop=True)
        self._report_problems(len(table))
        self._cached, self._positions = cached, np.flatnonzero(good[known])
        self._shapes = [shapes[position] for position in self._positions]
        self.frame_size = tuple(usual)
        self.table = table.loc[good, ["subject", "type", "view", "path"]].reset_index(drop=True)
        self.table["frames"] = [shape[0] for shape in self._shapes]
        self.labels, subjects = pd.factorize(self.table["subject"], sort=True)
        self.subjects = list(subjects)

    def _report_problems(self, count: int) -> None:
        """Warn of the sequences that are left out; refuse a set that has no others."""
        reasons = [
            row.problem if row.path in row.problem else f"{row.path}: {row.problem}"
            for row in self.problems.itertuples()
        ]
        if len(reasons) == count:
            raise UserError(
                f"none of {count} sequences can be used: if their files are damaged, make them "
                "again (`gaitlib pretreat`, or `gaitlib walkers` for walkers); if they are no "
                "silhouettes, choose others with data_cfg.data_in_use"
                + "".join(f". The first: {reason}" for reason in reasons[:1])
            )
        if reasons:
            some = join_some(reasons, separator="; ")
            logger.warning("%d of %d sequences are left out: %s", len(reasons), count, some)

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


def load_split(
    root: str | Path,
    partition: str | Path,
    split: str,
    *,
    cache: bool | Path = False,
    file_in_use: int | None = None,
) -> SilhouetteDataset:
    """Load the sequences of one side of a partition.

    Subjects of the partition that are not on disk, and subjects on disk that are in neither set,
    are logged and listed in ``problems`` with an empty type and view.

    Args:
        root: the folder that holds one folder per subject.
        partition: a partition JSON.
        split: ``"TRAIN_SET"`` or ``"TEST_SET"``.
        cache: see :class:`SilhouetteDataset`.
        file_in_use: see :func:`index_tree`.

    Raises:
        FileNotFoundError: ``root`` is absent, or holds no sequence of the split.
        UserError: the partition is invalid or names no subject, or no sequence is usable.
    """
    on_disk, subjects_of = _subjects_on_disk(Path(root)), read_partition(partition)
    wanted = subjects_of[split]
    if not wanted:
        raise UserError(f"{split} of the partition {partition} lists no subject: name at least one")
    table = index_tree(root, wanted, file_in_use)
    dataset = SilhouetteDataset(table, cache=cache)
    listed = {subject for side in SPLITS for subject in subjects_of[side]}
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
    return sorted(path.name for path in folder.glob("[!.]*/"))


def _sequence_folders(subject: Path) -> list[Path]:
    return sorted(subject.glob("[!.]*/[!.]*/"))


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
