"""Execute notebooks: the only door to papermill (https://papermill.readthedocs.io)."""

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import papermill
from nbclient.exceptions import DeadKernelError

from workbook import runs
from workbook.config import ConfigError, read_yaml
from workbook.study.points import Point, has_results, notebook_of, prepare
from workbook.study.progress import training_words
from workbook.system.live_line import live_line

log = logging.getLogger(__name__)

#: Dask sets this variable of its workers to 64 KiB. glibc then returns torch's memory to the system
#: in every step and asks for it again, which took half of the training time.
TRIM_VARIABLE = "MALLOC_TRIM_THRESHOLD_"
_COLOUR_CODES = re.compile(r"\x1b\[[0-9;]*m")


class PointError(RuntimeError):
    """A notebook failed; the message has its traceback and where its cells are kept."""


class PointKilledError(PointError):
    """The process that ran a notebook was killed."""


def execute_point(run: str, point: Point, device: str) -> None:
    """Execute a point's remaining notebooks into ``runs/<study>/<point>/notebooks``.

    A notebook gets ``run``, ``seed``, ``device`` and the experiment's sections, as far as its
    parameters cell names them. While it runs, and if it fails, its name begins with
    ``unfinished-``.

    Args:
        run: the study's folder below runs/.
        point: the points that it needs are done.
        device: as in `gaitlib.system.device.choose_device`.

    Raises:
        ConfigError: if a notebook is missing, or none has written the point's results.
        PointError: if a cell raised.
        PointKilledError: if the kernel was killed.
    """
    prepare(run, point)
    os.environ.pop(TRIM_VARIABLE, None)  # a kernel inherits the environment
    values = point.experiment.sections()
    values |= {"run": f"{run}/{point.name}", "seed": point.seed, "device": device}
    trained = has_results(run, point)
    for notebook in point.notebooks:
        source, output = runs.locate(notebook), notebook_of(run, point, notebook)
        if not source.exists():
            raise ConfigError(f"{source} is not there: see `notebooks` in the study's file")
        if not (trained and output.exists()):
            known = papermill.inspect_notebook(str(source)).keys() & values.keys()
            execute(source, output, {name: values[name] for name in known})
    if not has_results(run, point):
        raise ConfigError(
            f"none of the notebooks {list(point.notebooks)} has written results.json: the first "
            "must be notebooks/point.ipynb, or another that calls workbook.study.run_point"
        )


def execute(source: Path, output: Path, values: Mapping[str, object]) -> None:
    """Execute one notebook; it gets ``output``'s name once all its cells have run.

    Args:
        source: the notebook.
        output: the executed copy. Until it is complete, its name begins with ``unfinished-``.
        values: of its parameters.

    Raises:
        PointError: if a cell raised.
        PointKilledError: if the kernel was killed.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f"unfinished-{output.name}")
    logging.getLogger("papermill").setLevel(logging.WARNING)  # it logs its arguments
    try:
        papermill.execute_notebook(
            str(source),
            str(unfinished),
            parameters=dict(values),
            kernel_name="python3",
            cwd=str(source.parent),
            progress_bar=False,
            extra_arguments=["--log-level=CRITICAL"],  # else the kernel logs its sockets
        )
    except papermill.PapermillExecutionError as error:
        told = _COLOUR_CODES.sub("", str(error)).strip()
        raise PointError(f"{source} failed, its cells are in {unfinished}:\n{told}") from None
    except DeadKernelError as error:
        raise PointKilledError(f"{source.name}: {error}") from None
    unfinished.rename(output)


def execute_in_order(notebooks: Sequence[Path], run: str, cfgs: Path | None) -> None:
    """Execute notebooks into ``runs/<run>/notebooks``; each reads what the one before wrote.

    `live_line` shows which notebook runs, and how far its training is.

    Args:
        notebooks: the files.
        run: their parameter ``run``.
        cfgs: a YAML file of further parameters, such as an experiment's sections.

    Raises:
        ConfigError: if a notebook does not exist, or the YAML file cannot be read.
        PointError: if a cell raised, or the kernel was killed. Later ones do not run.
    """
    values = (read_yaml(cfgs) if cfgs else {}) | {"run": run}
    folder = runs.run_dir(run)
    if missing := [path for path in notebooks if not path.exists()]:
        raise ConfigError(f"no notebook {missing[0]}: name files such as notebooks/0*.ipynb")
    for number, path in enumerate(notebooks, 1):
        title, began = f"notebook {number} of {len(notebooks)}, {path.stem}", time.time()
        with live_line(partial(training_words, title, folder, began)):
            execute(path, folder / "notebooks" / path.name, values)
        log.info(f"{title}: done in {(time.time() - began) / 60:.1f} min")
