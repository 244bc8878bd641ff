"""The command line, one verb per job: ``gaitlib --help`` or ``python -m workbook --help``.

``torchrun --nproc_per_node=N -m workbook train|test`` does the same in N processes.

Exit status: 0 for success, 2 for an error that the user can fix (one line says how), 1 for a crash
or for work that was done in part (a subject lost, a study's point failed), 128 + the signal's
number for a run that a signal stopped.
"""

import contextlib
import functools
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from gaitlib.evaluate import Evaluation, to_results
from gaitlib.model import network_cost
from gaitlib.system import distributed
from gaitlib.system.errors import UserError
from gaitlib.system.files import write_atomically
from gaitlib.system.signals import TrainingStopped, exit_on_sigterm
from workbook import runs, steps
from workbook.config import ConfigError, Experiment, load_experiment, read_value, read_yaml
from workbook.plots import save_figure, view_heatmaps
from workbook.pretreat.pretreat_command import pretreat_command
from workbook.recognise.commands import (
    embed_command,
    enroll_command,
    forget_command,
    identify_command,
)
from workbook.report.run_tables import compressed_stage
from workbook.report.summary import summary_table, tests_table
from workbook.runs import Run
from workbook.steps import Watch
from workbook.steps.dataset import CHECKS, walker_video_command, walkers_command
from workbook.system.folders import PARAMS, name_fault
from workbook.system.live_line import LiveLine

if TYPE_CHECKING:
    from workbook.study import Point

app = typer.Typer(
    help="Compress GaitBase in one training run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

#: Errors a user can fix, reported in one line. Anything else is a bug and keeps its traceback.
USER_ERRORS = (UserError, OSError)

#: The default experiment of ``check-resume``.
CHECK_RESUME_CFGS = PARAMS / "check_resume.yaml"

Cfgs = Annotated[Path, typer.Option("--cfgs", help="The experiment's YAML file.")]
Overrides = Annotated[
    list[str], typer.Option("-o", "--override", help="section.key=value; may be repeated.")
]
RunName = Annotated[
    str,
    typer.Option(
        "--run",
        "--run-name",  # torchrun reads --run as an abbreviation of its own --run-path
        help="Folder below runs/; by default the file's name. Under torchrun write --run-name.",
    ),
]
Stage = Annotated[
    str,
    typer.Option(
        help="baseline, geta (channels and bits) or hesso (channels only); by default the stage of "
        "the file's compression_optimizer."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Seed = Annotated[
    int | None,
    typer.Option(help="For weights, batches and augmentation; by default the file's, or 0."),
]


def _one_line_errors(verb: Callable[..., None]) -> Callable[..., None]:
    """Report errors that a user can fix in one line, with exit status 2."""

    @functools.wraps(verb)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        rank = distributed.launched_rank()
        who = f"rank {rank}: " if rank else ""
        level = logging.WARNING if rank else logging.INFO
        logging.basicConfig(level=level, format=f"{who}%(message)s")
        try:
            with exit_on_sigterm():
                verb(*args, **kwargs)
            distributed.end_process(0)
        except TrainingStopped as stop:
            if not rank:
                typer.echo(str(stop), err=True)
            distributed.end_process(128 + stop.signal)
            raise typer.Exit(128 + stop.signal) from stop
        except USER_ERRORS as error:
            if rank:  # if rank 0 has the same error, it reports it and torchrun ends this process
                time.sleep(3)
            typer.echo(f"{who}error: {error}", err=True)
            distributed.end_process(2)
            raise typer.Exit(2) from error

    return wrapped


def _load(cfgs: Path, overrides: list[str]) -> Experiment:
    """Load an experiment's file and apply ``section.key=value`` overrides."""
    values = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"override {item!r} is not section.key=value")
        values[key] = read_value(text)
    return load_experiment(cfgs, values, CHECKS)


for _name, _command in {
    "walkers": walkers_command,
    "walker-video": walker_video_command,
    "pretreat": pretreat_command,
    "embed": embed_command,
    "enroll": enroll_command,
    "identify": identify_command,
    "forget": forget_command,
}.items():
    app.command(_name)(_one_line_errors(_command))


@app.command("notebooks")
@_one_line_errors
def notebooks_(
    notebooks: Annotated[list[Path], typer.Argument(help="In the order in which they run.")],
    run: Annotated[str, typer.Option(help="Folder below runs/.")],
    cfgs: Annotated[
        Path | None, typer.Option("--cfgs", help="An experiment's YAML file; else the defaults.")
    ] = None,
) -> None:
    """Execute notebooks in order into runs/<run>/notebooks, with one line of progress."""
    with _needs_extras("notebooks", verb="notebooks"):
        from workbook.study.workbook import NotebookFailedError, execute_in_order
    try:
        execute_in_order(notebooks, run, cfgs, LiveLine())
    except NotebookFailedError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


@app.command()
@_one_line_errors
def describe(
    cfgs: Cfgs,
    override: Overrides = [],  # noqa: B006 (typer needs a list)
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the parameters and MACs of an experiment's network by block, and its budget."""
    experiment = _load(cfgs, override)
    model = steps.build_network(experiment, torch.device("cpu"))
    budget = bits = None
    if experiment.compression is not None:
        graph = steps.trace(experiment, model)
        budget = steps.describe_budget(experiment.compression, graph)
        bits = steps.describe_bit_budget(experiment.compression, graph)
    blocks = network_cost.block_table(model)
    totals = {
        "params": network_cost.count_parameters(model),
        "macs_per_frame": network_cost.macs_per_frame(model),
    }
    if as_json:
        found = {**totals, "blocks": blocks.to_dict("records")}
        budgets = {"budget": budget, "bit_budget": bits}
        typer.echo(json.dumps(found | {k: v for k, v in budgets.items() if v is not None}))
        return
    typer.echo(blocks.to_string(index=False))
    gmacs = totals["macs_per_frame"] / 1e9
    typer.echo(f"{totals['params']:,} parameters, {gmacs:.3f} GMAC per frame")
    if budget is not None:
        limit, dense, least = budget["limit"], budget["dense"], budget["least"]
        typer.echo(
            f"budget: at most {limit:,} of {dense:,} {budget['unit']} ({limit / dense:.1%}); "
            f"the layers' floors allow {least:,}"
        )
    if bits is not None:
        limit, dense = bits["limit"], bits["dense"]
        typer.echo(f"bits: at most {limit:,} of {dense:,} {bits['unit']} ({limit / dense:.2%})")


@app.command()
@_one_line_errors
def train(
    cfgs: Cfgs,
    override: Overrides = [],  # noqa: B006
    run: RunName = "",
    stage: Stage = "",
    device: Device = "auto",
    seed: Seed = None,
    with_test: Annotated[
        bool, typer.Option("--test/--no-test", help="Test after training and write results.json.")
    ] = True,
    compress: Annotated[
        bool,
        typer.Option(
            "--compress/--no-compress",
            help="Cut the trained network and write its files, or stop after training.",
        ),
    ] = True,
    force: Annotated[
        bool,
        typer.Option(help="Resume even if the experiment differs from the checkpoint's."),
    ] = False,
) -> None:
    """Train and test a stage and write runs/<run>/<stage>/, as notebooks 02 and 03 do."""
    experiment = _load(cfgs, override)
    seed = read_yaml(cfgs).get("seed", 0) if seed is None else seed
    with distributed.process_group(device, experiment.trainer_cfg.process_timeout) as where:
        this = Run(run or cfgs.stem, experiment, seed, where)
        stage = steps.choose_stage(this, stage)
        watch = Watch(progress=sys.stderr.isatty())
        steps.run_stage(this, stage, watch, test=with_test, compress=compress, force=force)
        if with_test and compress and distributed.is_main():
            typer.echo(summary_table(this.name))


@app.command()
@_one_line_errors
def test(
    cfgs: Annotated[
        list[Path],
        typer.Option("--cfgs", help="The experiment's YAML file; repeat it for further data sets."),
    ],
    override: Overrides = [],  # noqa: B006
    run: RunName = "",
    stage: Stage = "",
    iteration: Annotated[
        int | None, typer.Option("--iter", help="The checkpoint's iteration.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Any checkpoint, or a compressed_*.pt or .safetensors.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Test a checkpoint (default: evaluator_cfg.restore_hint) and write test-<name>.json.

    It may have been trained on another data set. With several files --cfgs it is tested on the data
    set of each, and one table lists them all.
    """
    experiments = [_load(path, override) for path in cfgs]
    names = [experiment.data_cfg.dataset_name for experiment in experiments]
    for i, (path, dataset) in enumerate(zip(cfgs, names, strict=True) if len(cfgs) > 1 else ()):
        if dataset in names[:i]:
            raise ConfigError(
                f"{path} tests {dataset}, as an earlier file does: give it a data_cfg."
                "dataset_name of its own (data_cfg.test_dataset_name chooses the protocol)"
            )
        if fault := name_fault(dataset, longest=100):  # a part of the names of files
            raise ConfigError(
                f"{path}: data_cfg.dataset_name {dataset!r} cannot name a file: {fault}. Give "
                "another (data_cfg.test_dataset_name chooses the protocol)"
            )
    timeout = experiments[0].trainer_cfg.process_timeout
    with distributed.process_group(device, timeout) as where:
        tested = {}
        for dataset, experiment in zip(names, experiments, strict=True):
            this = Run(run or cfgs[0].stem, experiment, device=where)
            stage = steps.choose_stage(this, stage)
            checkpoint = checkpoint or steps.find_tested_checkpoint(this, stage, iteration)
            name = f"{checkpoint.stem}-{dataset}" if len(cfgs) > 1 else checkpoint.stem
            progress = sys.stderr.isatty()
            found = steps.evaluate_checkpoint(this, stage, checkpoint, progress=progress, name=name)
            tested[dataset] = to_results(found[0])
            if distributed.is_main():
                _show_evaluation(*found, this.name, stage)
        if len(cfgs) > 1 and distributed.is_main():
            table = tests_table(tested)
            target = this.folder(stage) / f"tests-{checkpoint.stem}.csv"
            write_atomically(target, table.to_csv(index=False))
            typer.echo(table.to_string(index=False, na_rep="-"))
            typer.echo(f"written: {target}")


def _show_evaluation(evaluation: Evaluation, path: Path, run: str, stage: str) -> None:
    """Print the accuracies of a test and save a figure of them view by view."""
    results = to_results(evaluation)
    for metric in ("rank1", *evaluation.scores):
        for condition in evaluation.conditions:
            value = results[metric][condition]
            typer.echo(f"{metric} {condition} {'-' if value is None else f'{value} %'}")
    typer.echo(f"written: {path}")
    if evaluation.submission is not None:
        name = path.stem.removeprefix("test-")
        typer.echo(f"for the server: {path.with_name(f'submission-{name}.csv')}")
    if maps := evaluation.rank1_by_view:
        figure = f"{run}/test-{stage}-{path.stem.removeprefix('test-')}"
        save_figure(view_heatmaps({runs.STAGES[stage].words: maps}), figure)
        typer.echo(f"figure, view by view: {runs.figures_folder() / figure}.png")


@app.command("check-resume")
@_one_line_errors
def check_resume_(
    cfgs: Annotated[
        Path, typer.Option("--cfgs", help="The experiment that is run and killed.")
    ] = CHECK_RESUME_CFGS,
    override: Overrides = [],  # noqa: B006
    kills: Annotated[int, typer.Option(help="Number of kills.")] = 50,
    seed: Annotated[int, typer.Option(help="For the runs and for the moments of the kills.")] = 0,
) -> None:
    """Kill a run at random moments, resume it, and compare it bit by bit with an unkilled run."""
    table = steps.check_resume(_load(cfgs, override), kills, seed=seed, on_kill=typer.echo)
    counts = table.groupby(["stage", "phase"], sort=False).agg(
        kills=("writing", "size"), while_writing=("writing", "sum")
    )
    typer.echo(counts.to_string())
    typer.echo(f"{kills} kills: weights, groups, optimizer state and metrics are identical")


@app.command("study")
@_one_line_errors
def study_(
    file: Annotated[
        Path, typer.Argument(help="The study's file, for example params/studies/quickstart.yaml.")
    ],
    scheduler: Annotated[
        str | None, typer.Option(help="A Dask scheduler, tcp://host:port; by default this machine.")
    ] = None,
    scheduler_file: Annotated[
        Path | None, typer.Option(help="A file with the Dask scheduler's address.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Points at once on this machine; by default as cores and memory allow."),
    ] = None,
    device: Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the points and their estimated cost.")
    ] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Only write and print the table of finished points.")
    ] = False,
) -> None:
    """Run a study's points that are not done yet, and write runs/<study>/table.csv."""
    from workbook.study import expand, layer_table, point_table, read_plan, write_tables

    plan = read_plan(file)
    run, points = plan.name, expand(plan)
    if dry_run:
        _show_cost(run, points, workers, device)
        return
    failed = []
    if not table:
        with _needs_extras("notebooks", "study"):
            from workbook.study.runner import run_study

        cluster = {"scheduler": scheduler, "scheduler_file": scheduler_file, "workers": workers}
        line = LiveLine()
        watch = {"on_line": line.keep, "on_progress": line.show}
        failed = run_study(run, points, **cluster, device=device, **watch).failed
        line.clear()
    rows = point_table(run, points)
    if len(rows):
        typer.echo(rows.to_string(index=False))
        with _needs_extras("study"):
            path = write_tables(runs.runs_folder() / run, rows, layer_table(run, points))
        typer.echo(f"{len(rows)} of {len(points)} points: {path}")
    else:
        typer.echo(f"none of {len(points)} points is done")
    if failed:
        typer.echo(f"failed, see failed.txt in runs/{run}/: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


@contextlib.contextmanager
def _needs_extras(*names: str, verb: str = "study") -> Iterator[None]:
    """Turn a failed import into an error that names the extras to install."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f'gaitlib {verb}: {error}; install it with pip install -e ".[{",".join(names)}]"'
        ) from error


def _show_cost(run: str, points: Sequence["Point"], workers: int | None, device: str) -> None:
    """Print a study's points with their measured or estimated time, and the total."""
    with _needs_extras("study"):
        from workbook.study.estimate import estimate, workers_for

    cost = estimate(run, points, device)
    for row in cost.itertuples():
        typer.echo(f"{row.state:8}{row.seconds / 60:6.1f} min  {row.point} ({row.source})")
    missing = cost[cost["state"] != "done"]
    count = workers or workers_for(cost["memory"].max(), device)
    total = f"{len(points)} points, {len(points) - len(missing)} done"
    if len(missing):
        seconds, memory = missing["seconds"].sum() / count, cost["memory"].max()
        total += f"; the others about {seconds / 60:.0f} min, {count} at once, "
        total += f"each with {memory / 1e9:.1f} GB at most"
    typer.echo(total)


@app.command()
@_one_line_errors
def export(
    run: Annotated[str, typer.Option(help="Folder below runs/.")],
    form: Annotated[
        str, typer.Option("--format", help=f"One of {', '.join(steps.FORMATS)}.")
    ] = "pt",
    stage: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(runs.STAGES)}; by default the run's compressed network. "
            "baseline is the dense one."
        ),
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Folder; by default one in the stage's own.")
    ] = None,
    round_sums: Annotated[
        bool, typer.Option(help="onnx-int8: also round residual sums; faster, needs the data.")
    ] = False,
) -> None:
    """Export a network of a run without its classifier: silhouettes in, embeddings out."""
    stage = stage or compressed_stage(run)
    this = Run(run, load_experiment(runs.config_file(run, stage)))
    data = steps.open_data(this.experiment) if round_sums else None
    folder = out or this.folder(stage) / "compressed" / "embedding"
    path = steps.export_network(this, form, folder, data, stage)
    typer.echo(f"{path.stat().st_size:,} bytes: {path}")


@app.command()
@_one_line_errors
def summary(run: str) -> None:
    """Print the accuracy and the costs of a finished run's networks in one table."""
    typer.echo(summary_table(run))


@app.command()
@_one_line_errors
def clean(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be removed.")
    ] = False,
) -> None:
    """Remove what killed processes left, mapped files of changed data, and earlier networks."""
    found = steps.find_leftovers()
    for leftover in found:
        typer.echo(f"{leftover.size:>15,}  {leftover.path}: {leftover.reason}")
    if not dry_run:
        steps.remove_leftovers(found)
    total = sum(leftover.size for leftover in found)
    typer.echo(f"{len(found)} files, {total:,} bytes {'could be' if dry_run else 'were'} removed")
