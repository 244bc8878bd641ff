"""Execute notebooks in order, with one line that says how far they are: ``gaitlib notebooks``."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from gaitlib.system.errors import UserError
from workbook import runs
from workbook.config import ConfigError, read_yaml
from workbook.study.point_notebooks import PointError, PointKilledError, execute
from workbook.study.progress import training_words
from workbook.system.live_line import live_line

log = logging.getLogger(__name__)


class NotebookFailedError(UserError):
    """A notebook failed; the message has its traceback and where its cells are kept."""


def execute_in_order(notebooks: Sequence[Path], run: str, cfgs: Path | None) -> None:
    """Execute notebooks into ``runs/<run>/notebooks``; each reads what the one before wrote.

    `live_line` shows which notebook runs, and how far its training is.

    Args:
        notebooks: the files.
        run: their parameter ``run``.
        cfgs: a YAML file of further parameters, such as an experiment's sections.

    Raises:
        ConfigError: if a notebook does not exist, or the YAML file cannot be read.
        NotebookFailedError: if a cell raised, or the kernel was killed. Later ones do not run.
    """
    values = (read_yaml(cfgs) if cfgs else {}) | {"run": run}
    folder = runs.run_dir(run)
    if missing := [path for path in notebooks if not path.exists()]:
        raise ConfigError(f"no notebook {missing[0]}: name files such as notebooks/0*.ipynb")
    for number, path in enumerate(notebooks, 1):
        _execute(path, f"notebook {number} of {len(notebooks)}, {path.stem}", folder, values)


def _execute(path: Path, title: str, folder: Path, values: Mapping[str, object]) -> None:
    began, output = time.time(), folder / "notebooks" / path.name

    def words() -> str:
        training = training_words(folder, since=began)
        return f"{title}; {training}" if training else title

    try:
        with live_line(words):
            execute(path, output, values)
    except (PointError, PointKilledError) as error:
        kept = output.with_name(f"unfinished-{path.name}")
        raise NotebookFailedError(
            f"{error}\n{path} failed; its cells up to there are in {kept}"
        ) from error
    log.info(f"{title}: done in {(time.time() - began) / 60:.1f} min")
