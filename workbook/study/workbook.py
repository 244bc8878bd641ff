"""Execute notebooks in order, with one line that says how far they are: ``gaitlib notebooks``."""

import time
from collections.abc import Sequence
from pathlib import Path

import nbformat

from gaitlib.system.errors import UserError
from workbook import runs
from workbook.config import ConfigError, read_yaml
from workbook.study.point_notebooks import PointError, PointKilledError, execute
from workbook.study.progress import training_words
from workbook.system.live_line import LiveLine


class NotebookFailedError(UserError):
    """A notebook failed; the message has its traceback and where its cells are kept."""


def execute_in_order(
    notebooks: Sequence[Path], run: str, cfgs: Path | None, line: LiveLine
) -> None:
    """Execute notebooks into ``runs/<run>/notebooks``; each reads what the one before wrote.

    Args:
        notebooks: the files.
        run: their parameter ``run``.
        cfgs: a YAML file of further parameters, such as an experiment's sections.
        line: shows which notebook runs, which of its sections, and how far its training is.

    Raises:
        ConfigError: if a notebook does not exist, or the YAML file cannot be read.
        NotebookFailedError: if a cell raised, or the kernel was killed. Later ones do not run.
    """
    values = (read_yaml(cfgs) if cfgs else {}) | {"run": run}
    folder = runs.run_dir(run) / "notebooks"
    if missing := [path for path in notebooks if not path.exists()]:
        raise ConfigError(f"no notebook {missing[0]}: name files such as notebooks/0*.ipynb")
    for number, path in enumerate(notebooks, 1):
        story = Story(path, f"{number} of {len(notebooks)}", run)
        start = time.monotonic()
        try:
            with line.watching(story.words):
                execute(path, folder / path.name, values, story.follow)
        except (PointError, PointKilledError) as error:
            raise NotebookFailedError(
                f"{error}\n{path} failed; its cells up to there are in "
                f"{folder / f'unfinished-{path.name}'}"
            ) from error
        line.keep(f"{story.title}: done in {(time.monotonic() - start) / 60:.1f} min")


class Story:
    """Where a notebook is: its title, the section that runs, and the training in it.

    Args:
        path: the notebook.
        position: which of how many it is.
        run: the run whose trainings it may start.
    """

    def __init__(self, path: Path, position: str, run: str) -> None:
        self.run, self.since = run, time.time()
        self.sections: dict[str, str] = {}  # of each code cell, by its text
        heading = path.stem
        title = ""
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "code":
                self.sections[cell.source] = heading
            elif cell.source.startswith("#"):
                heading = cell.source.partition("\n")[0].lstrip("#").strip()
                title = title or heading
        self.title = f"notebook {position}, {title or path.stem}"
        self.section = ""

    def follow(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        """Note which section a cell that starts belongs to; papermill's own cell has none."""
        self.section = self.sections.get(cell.source, self.section)

    def words(self) -> str:
        """Return the line: the notebook, the section, and how far its training is."""
        section = "" if self.section in self.title else f": {self.section}"
        training = training_words(runs.run_dir(self.run), self.since)
        return f"{self.title}{section}" + (f"; {training}" if training else "")
