"""How far a training is, in words, read from the files that it writes."""

from pathlib import Path
from statistics import fmean

from gaitlib.train.history import read_rows
from workbook.config import ConfigError, read_yaml

LAST_ROWS = 5  # whose time per step says how long the rest takes


def training_words(name: str, folder: Path, since: float = 0.0) -> str:
    """Say how far the training is that last wrote below a run's folder.

    Args:
        name: what the words begin with.
        folder: of a run; its stages are folders in it.
        since: a time (seconds since 1970); trainings that wrote nothing after it do not count.

    Returns:
        such as "a: geta 120/250, loss 2.61, 2 min left", or ``name`` alone if nothing is trained.
    """
    try:
        written = {path: path.stat().st_mtime for path in folder.glob("*/history.csv")}
        log = max(written, key=written.get, default=None)
        if log is None or written[log] <= since or not (rows := read_rows(log)):
            return name
        total = read_yaml(log.with_name("config.yaml"))["trainer_cfg"]["total_iter"]
    except (OSError, ConfigError):  # a new training has just set it aside
        return name
    done = int(rows[-1]["iteration"])
    if done >= total:
        return name
    left = (total - done) * fmean(row["step_ms"] for row in rows[-LAST_ROWS:]) / 60_000  # minutes
    time_left = f"{left:.0f} min left" if left >= 1 else "under a minute left"
    return f"{name}: {log.parent.name} {done}/{total}, loss {rows[-1]['total']:.2f}, {time_left}"
