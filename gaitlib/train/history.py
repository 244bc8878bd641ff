"""The rows that a stage logs while it trains: a CSV file to read, and a part of each checkpoint.

A resumed run takes its rows from the checkpoint. The file may hold later rows, half a row, or
nothing, if the run before was killed.
"""

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from gaitlib.system.errors import UserError
from gaitlib.system.files import write_atomically
from gaitlib.train.checkpoint import TAKE_EARLIER, CheckpointError

log = logging.getLogger(__name__)

Rows = list[dict[str, float]]


class History:
    """A CSV file with one row per logged step.

    Args:
        path: of the file.
        rows: those before this start; each has its ``iteration``.
        writes: write the file, at once and with each row.
    """

    def __init__(self, path: Path, rows: Rows, writes: bool = True) -> None:
        self.path, self.rows, self.writes = path, list(rows), writes
        if writes:
            write_atomically(path, self.table().to_csv(index=False) if self.rows else "")

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row."""
        self.rows.append(dict(row))
        if self.writes:
            with self.path.open("a") as stream:
                pd.DataFrame([row]).to_csv(stream, header=stream.tell() == 0, index=False)

    def table(self) -> pd.DataFrame:
        """Return the rows as a table."""
        return pd.DataFrame(self.rows)

    def columns(self) -> dict[str, Tensor]:
        """Return the rows as one tensor ``(rows,)`` per column, for a checkpoint."""
        return {  # integers beyond int64 become floats
            name: torch.tensor(values.to_numpy(None if values.dtype == "int64" else "float64"))
            for name, values in self.table().items()
        }


def rows_to_continue(state: Mapping[str, Any], path: Path) -> Rows:
    """Return the rows of a CSV file that belong to a checkpoint.

    Args:
        state: the checkpoint. Its entry ``history`` holds the columns of each file by the file's
            stem.
        path: of the file.

    Raises:
        CheckpointError: if the entry is not what a checkpoint has there.
    """
    tables = state.get("history")
    columns = tables.get(path.stem, {}) if isinstance(tables, Mapping) else None
    values = columns.values() if isinstance(columns, Mapping) else [None]
    fine = all(isinstance(v, Tensor) and v.ndim == 1 for v in values)
    if not fine or len({len(v) for v in values}) > 1:
        raise CheckpointError(
            f"the checkpoint's history is damaged: {path.stem} should be a column of numbers for "
            f"each name, not {str(tables):.60}. {TAKE_EARLIER}"
        )
    return pd.DataFrame({name: v.numpy() for name, v in columns.items()}).to_dict("records")


def read_rows(path: Path) -> Rows:
    """Return the whole rows of a CSV file, which may be missing; a damaged file is a warning."""
    whole = path.read_bytes() if path.exists() else b""
    whole = whole.rpartition(b"\n")[0]  # what follows the last newline is half a row
    if not whole:
        return []
    try:
        rows = pd.read_csv(io.BytesIO(whole))
        if not pd.to_numeric(rows["iteration"]).is_monotonic_increasing:
            raise UserError("iterations do not ascend")
    except (ValueError, KeyError) as error:  # pandas' own errors are ValueErrors
        log.warning("%s is damaged, and its rows are left out: %s", path, error)
        return []
    return rows.to_dict("records")
