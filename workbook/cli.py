"""The command line, one verb per job: ``gaitlib --help`` or ``python -m workbook --help``.

``torchrun --nproc_per_node=N -m workbook train|test`` does the same in N processes.

Exit status: 0 for success, 2 for an error that the user can fix (one line says how), 1 for a crash
or for work that was done in part (a subject lost, a study's point failed), 128 + the signal's
number for a run that a signal stopped.

What takes time to import, such as torch, is imported by the verb that needs it.
"""

import functools
import importlib.util
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gaitlib.system.errors import UserError
from gaitlib.system.signals import TrainingStopped, exit_on_sigterm
from walkers import command as draw
from workbook.pretreat import pretreat_command as pretreat
from workbook.recognise import commands as recognise
from workbook.system.folders import PARAMS, name_fault

if TYPE_CHECKING:
    from gaitlib.evaluate import Evaluation
    from workbook.config import Experiment

app = typer.Typer(
    help="Compress GaitBase in one training run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

#: Errors a user can fix, reported in one line. Anything else is a bug and keeps its traceback.
USER_ERRORS = (UserError, OSError)

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
    typer.Option(help="baseline, hesso (cuts channels) or geta (and bits); else the file's own."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list what would be done.")]


def _reporting(verb: Callable[..., None]) -> Callable[..., None]:
    """Report errors that a user can fix in one line, with exit status 2."""

    @functools.wraps(verb)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        from gaitlib.system import distributed

        rank = distributed.launched_rank()
        who = f"rank {rank}: " if rank else ""
        level = logging.WARNING if rank else logging.INFO
        logging.basicConfig(level=level, format=f"{who}%(message)s")
        try:
            with exit_on_sigterm():
                verb(*args, **kwargs)
            status, text = 0, ""
        except TrainingStopped as stop:
            status, text = 128 + stop.signal, "" if rank else str(stop)
        except USER_ERRORS as error:
            status, text = 2, f"{who}error: {error}"
            if rank:  # if rank 0 has the same error, it reports it and torchrun ends this process
                time.sleep(3)
        if text:
            typer.echo(text, err=True)
        distributed.end_process(status)
        raise typer.Exit(status)

    return wrapped


def _verb(verb: Callable[..., None]) -> Callable[..., None]:
    """Add a function to the command line; the verb is its name."""
    return app.command(verb.__name__.removesuffix("_command").replace("_", "-"))(_reporting(verb))


for _command in (
    draw.walkers_command,
    draw.walker_video_command,
    pretreat.pretreat_command,
    recognise.embed_command,
    recognise.enroll_command,
    recognise.identify_command,
    recognise.forget_command,
):
    _verb(_command)


def _load(cfgs: Path, overrides: list[str]) -> "Experiment":
    """Load an experiment's file and apply ``section.key=value`` overrides."""
    from workbook.config import ConfigError, load_experiment, read_value

    values = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"override {item!r} is not section.key=value")
        values[key] = read_value(text)
    return load_experiment(cfgs, values)


def _needs(extras: str, *packages: str) -> None:
    """Refuse to go on without some packages; the message names the extras to install."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise UserError(f'no {", ".join(missing)}: install it with pip install -e ".[{extras}]"')


@_verb
def notebooks(
    notebooks: Annotated[list[Path], typer.Argument(help="In the order in which they run.")],
    run: Annotated[str, typer.Option(help="Folder below runs/.")],
    cfgs: Annotated[Path | None, typer.Option(help="The experiment's YAML file.")] = None,
) -> None:
    """Execute notebooks in order into runs/<run>/notebooks, with one line of progress."""
    _needs("notebooks", "papermill")
    from workbook.study.point_notebooks import PointError, execute_in_order

    try:
        execute_in_order(notebooks, run, cfgs)
    except PointError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


@_verb
def describe(
    cfgs: Cfgs,
    override: Overrides = [],  # noqa: B006 (typer needs a list)
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the parameters and MACs of an experiment's network by block, and its budget."""
    import torch

    from gaitlib.model import network_cost
    from workbook import steps

    experiment = _load(cfgs, override)
    model = steps.build_network(experiment, torch.device("cpu"))
    blocks = network_cost.block_table(model)
    found = {
        "params": network_cost.count_parameters(model),
        "macs_per_frame": network_cost.macs_per_frame(model),
        "blocks": blocks.to_dict("records"),
    }
    if experiment.compression is not None:
        graph = steps.trace(experiment, model)
        budgets = {
            "budget": steps.describe_budget(experiment.compression, graph),
            "bit_budget": steps.describe_bit_budget(experiment.compression, graph),
        }
        found |= {key: budget for key, budget in budgets.items() if budget is not None}
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(blocks.to_string(index=False))
    gmacs = found["macs_per_frame"] / 1e9
    typer.echo(f"{found['params']:,} parameters, {gmacs:.3f} GMAC per frame")
    for name, key in (("budget", "budget"), ("bits", "bit_budget")):
        if (budget := found.get(key)) is not None:
            limit, dense = budget["limit"], budget["dense"]
            share = f"{limit:,} of {dense:,} {budget['unit']} ({limit / dense:.2%})"
            floors = f"; the layers' floors allow {budget['least']:,}" if "least" in budget else ""
            typer.echo(f"{name}: at most {share}{floors}")


@_verb
def train(
    cfgs: Cfgs,
    override: Overrides = [],  # noqa: B006
    run: RunName = "",
    stage: Stage = "",
    device: Device = "auto",
    seed: Annotated[int | None, typer.Option(help="By default the file's, or 0.")] = None,
    test: Annotated[bool, typer.Option(help="Test it and write results.json.")] = True,
    compress: Annotated[bool, typer.Option(help="Cut the network, or stop before.")] = True,
    force: Annotated[bool, typer.Option(help="Resume a changed experiment too.")] = False,
) -> None:
    """Train and test a stage and write runs/<run>/<stage>/, as notebooks 02 and 03 do."""
    from gaitlib.system import distributed
    from workbook import runs, steps
    from workbook.config import read_yaml
    from workbook.report.summary import summary_table

    experiment = _load(cfgs, override)
    seed = read_yaml(cfgs).get("seed", 0) if seed is None else seed
    with distributed.process_group(device) as where:
        this = runs.Run(run or cfgs.stem, experiment, seed, where)
        stage = steps.choose_stage(this, stage)
        watch = steps.Watch(progress=sys.stderr.isatty())
        steps.run_stage(this, stage, watch, test=test, compress=compress, force=force)
        if test and compress and distributed.is_main():
            typer.echo(summary_table(this.name))


@_verb
def test(
    cfgs: Annotated[list[Path], typer.Option(help="As train's; repeat it for more data sets.")],
    override: Overrides = [],  # noqa: B006
    run: RunName = "",
    stage: Stage = "",
    checkpoint: Annotated[Path | None, typer.Option(help="Any, or a network's file.")] = None,
    device: Device = "auto",
) -> None:
    """Test a checkpoint (default: evaluator_cfg.restore_hint) and write test-<name>.json.

    It may have been trained on another data set. With several files --cfgs it is tested on the data
    set of each, and one table lists them all.
    """
    from gaitlib.evaluate import to_results
    from gaitlib.system import distributed
    from gaitlib.system.files import write_atomically
    from workbook import runs, steps
    from workbook.report.summary import tests_table

    experiments = [_load(path, override) for path in cfgs]
    names = [experiment.data_cfg.dataset_name for experiment in experiments]
    for name in names if len(names) > 1 else ():  # it is a part of the names of files
        if fault := "two files have it" if names.count(name) > 1 else name_fault(name, longest=100):
            raise UserError(
                f"data_cfg.dataset_name {name!r} cannot name a file of results: {fault}. Give "
                "another (data_cfg.test_dataset_name chooses the protocol)"
            )
    with distributed.process_group(device) as where:
        tested = {}
        for experiment in experiments:
            this = runs.Run(run or cfgs[0].stem, experiment, device=where)
            stage = steps.choose_stage(this, stage)
            checkpoint = checkpoint or steps.find_tested_checkpoint(this, stage)
            dataset = experiment.data_cfg.dataset_name
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


def _show_evaluation(evaluation: "Evaluation", path: Path, run: str, stage: str) -> None:
    """Print the accuracies of a test and save a figure of them view by view."""
    from gaitlib.evaluate import to_results
    from workbook import runs
    from workbook.plots import save_figure, view_heatmaps

    results, name = to_results(evaluation), path.stem.removeprefix("test-")
    for metric in ("rank1", *evaluation.scores):
        for condition in evaluation.rank1:
            value = results[metric][condition]
            typer.echo(f"{metric} {condition} {'-' if value is None else f'{value} %'}")
    typer.echo(f"written: {path}")
    if evaluation.submission is not None:
        typer.echo(f"for the server: {path.with_name(f'submission-{name}.csv')}")
    if maps := evaluation.rank1_by_view:
        figure = f"{run}/test-{stage}-{name}"
        save_figure(view_heatmaps({runs.STAGES[stage].words: maps}), figure)
        typer.echo(f"figure, view by view: {runs.figures_folder() / figure}.png")


@_verb
def check_resume(
    cfgs: Cfgs = PARAMS / "check_resume.yaml",
    override: Overrides = [],  # noqa: B006
    kills: Annotated[int, typer.Option(help="Number of kills.")] = 50,
    seed: Annotated[int, typer.Option(help="For the runs and for the moments of the kills.")] = 0,
) -> None:
    """Kill a run at random moments, resume it, and compare it bit by bit with an unkilled run."""
    from workbook import steps

    table = steps.check_resume(_load(cfgs, override), kills, seed=seed, on_kill=typer.echo)
    counts = table.groupby(["stage", "phase"], sort=False).agg(
        kills=("writing", "size"), while_writing=("writing", "sum")
    )
    typer.echo(counts.to_string())
    typer.echo(f"{kills} kills: weights, groups, optimizer state and metrics are identical")


@_verb
def study(
    file: Annotated[Path, typer.Argument(help="Such as params/studies/quickstart.yaml.")],
    scheduler: Annotated[
        str | None, typer.Option(help="A Dask scheduler: tcp://host:port, or its file, *.json.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Points at once here; else as cores and memory allow.")
    ] = None,
    device: Device = "auto",
    dry_run: DryRun = False,
    table: Annotated[
        bool, typer.Option("--table", help="Only write and print the table of finished points.")
    ] = False,
) -> None:
    """Run a study's points that are not done yet, and write runs/<study>/table.csv."""
    _needs("notebooks,study", "papermill", "distributed", "pyarrow")
    from workbook import runs
    from workbook.study import expand, layer_table, point_table, read_plan, write_tables
    from workbook.study.estimate import cost_words, estimate
    from workbook.study.runner import run_study

    plan = read_plan(file)
    run, points, failed = plan.name, expand(plan), []
    if dry_run:
        cost = estimate(run, points, device)
        for row in cost.itertuples():
            typer.echo(f"{row.state:8}{row.seconds / 60:6.1f} min  {row.point} ({row.source})")
        typer.echo(cost_words(cost, workers, device))
        return
    if not table:
        failed = run_study(run, points, scheduler=scheduler, workers=workers, device=device).failed
    rows = point_table(run, points)
    if len(rows):
        typer.echo(rows.to_string(index=False))
        path = write_tables(runs.runs_folder() / run, rows, layer_table(run, points))
        typer.echo(f"{len(rows)} of {len(points)} points: {path}")
    else:
        typer.echo(f"none of {len(points)} points is done")
    if failed:
        typer.echo(f"failed, see failed.txt in runs/{run}/: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


@_verb
def export(
    run: Annotated[str, typer.Option(help="Folder below runs/.")],
    form: Annotated[
        str, typer.Option("--format", help="pt, safetensors, onnx or onnx-int8.")
    ] = "pt",
    stage: Annotated[str, typer.Option(help="Such as baseline; else the compressing one.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder; by default in the stage's own.")] = None,
    round_sums: Annotated[bool, typer.Option(help="onnx-int8: sums too; needs data.")] = False,
) -> None:
    """Export a network of a run without its classifier: silhouettes in, embeddings out."""
    from workbook import runs, steps
    from workbook.config import load_experiment
    from workbook.report.run_tables import compressed_stage

    stage = stage or compressed_stage(run)
    this = runs.Run(run, load_experiment(runs.config_file(run, stage)))
    data = steps.open_data(this.experiment) if round_sums else None
    folder = out or this.folder(stage) / "compressed" / "embedding"
    path = steps.export_network(this, form, folder, data, stage)
    typer.echo(f"{path.stat().st_size:,} bytes: {path}")


@_verb
def summary(run: str) -> None:
    """Print the accuracy and the costs of a finished run's networks in one table."""
    from workbook.report.summary import summary_table

    typer.echo(summary_table(run))


@_verb
def clean(dry_run: DryRun = False) -> None:
    """Remove what killed processes left, mapped files of changed data, and earlier networks."""
    from workbook import steps

    found = steps.find_leftovers()
    for leftover in found:
        typer.echo(f"{leftover.size:>15,}  {leftover.path}: {leftover.reason}")
    if not dry_run:
        steps.remove_leftovers(found)
    total = sum(leftover.size for leftover in found)
    typer.echo(f"{len(found)} files, {total:,} bytes {'could be' if dry_run else 'were'} removed")
