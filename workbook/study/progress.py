"""How far a training is, in words, read from the files that it writes."""

from pathlib import Path

from gaitlib.train.history import Rows, read_rows
from workbook.config import read_yaml

LAST_ROWS = 5  # whose time per step says how long the rest takes


def training_words(folder: Path, since: float = 0.0) -> str:
    """Say how far the training is that last wrote below a run's folder; "" without one.

    Args:
        folder: of a run; its stages are folders in it.
        since: a time (seconds since 1970); trainings that wrote nothing after it do not count.

    Returns:
        such as "geta 120/250, loss 2.61, 2 min left".
    """
    logs = {path: _modified(path) for path in folder.glob("*/history.csv")}
    written = [path for path, when in logs.items() if when > since]
    if not written:
        return ""
    log = max(written, key=logs.get)
    rows, total = _rows(log), _total_iterations(log.with_name("config.yaml"))
    if not rows or total is None:
        return ""
    done, last = int(rows[-1]["iteration"]), rows[-LAST_ROWS:]
    if done >= total:
        return ""
    step = sum(row["step_ms"] for row in last) / len(last) / 60_000  # minutes
    left = (total - done) * step
    time_left = f"{left:.0f} min left" if left >= 1 else "under a minute left"
    return f"{log.parent.name} {done}/{total}, loss {rows[-1]['total']:.2f}, {time_left}"


def last_row(stage: Path) -> dict[str, float] | None:
    """Return iteration and total loss of the last row of a stage's history; None without one."""
    rows = _rows(stage / "history.csv")
    return {key: rows[-1][key] for key in ("iteration", "total")} if rows else None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # a new training has just set it aside
        return 0.0


def _rows(log: Path) -> Rows:
    """Return the rows of a history, which is being written."""
    try:
        rows = read_rows(log)
    except OSError:  # a new training has just set it aside
        return []
    return [row for row in rows if "step_ms" in row and "total" in row]


def _total_iterations(config: Path) -> int | None:
    if not config.exists():
        return None
    return read_yaml(config).get("trainer_cfg", {}).get("total_iter")
