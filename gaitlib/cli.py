"""The command line: one verb a job. ``gaitlib --help``, or ``python -m gaitlib --help``.

``torchrun --nproc_per_node=N -m gaitlib train|test`` does the same in N processes.

Exit status: 0 done, 2 a request that cannot be met (one line says what to change), 1 a crash,
128 + the signal's number for a run that a signal stopped.
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

from gaitlib import runs, steps
from gaitlib.config import ConfigError, Experiment, load_experiment, read_value, read_yaml
from gaitlib.data.pretreat import pretreat_tree
from gaitlib.deploy.cut_network import CompressionError
from gaitlib.evaluate import Evaluation, to_results
from gaitlib.model import network_cost
from gaitlib.plots import save_figure, view_heatmaps
from gaitlib.prune.oto import UnsupportedTorchError
from gaitlib.report.run_tables import compressed_stage
from gaitlib.report.summary import summary_table
from gaitlib.runs import Run
from gaitlib.steps import Watch
from gaitlib.steps.dataset import walkers_command
from gaitlib.system import distributed
from gaitlib.system.files import PARAMS
from gaitlib.system.processes import WorkerError
from gaitlib.system.signals import TrainingStopped, exit_on_sigterm
from gaitlib.train.loop import NonFiniteLossError

if TYPE_CHECKING:
    from gaitlib.study import Point

app = typer.Typer(
    help="Compress GaitBase in one training run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

#: Errors a user can fix, reported in one line. Anything else is a bug and keeps its traceback.
USER_ERRORS = (
    steps.ProcessesFailedError,
    distributed.LostProcessError,
    steps.ResumeError,
    WorkerError,
    OSError,
    ValueError,  # ConfigError and CheckpointError among them
    NonFiniteLossError,
    FloatingPointError,
    CompressionError,
    UnsupportedTorchError,
)

#: The experiment of ``check-resume``.
CHECKED = PARAMS / "check_resume.yaml"

Cfgs = Annotated[Path, typer.Option("--cfgs", help="The experiment's YAML file.")]
Overrides = Annotated[
    list[str], typer.Option("-o", "--override", help="section.key=value; may be repeated.")
]
RunName = Annotated[
    str,
    typer.Option(
        "--run",
        "--run-name",  # torchrun takes a --run after it for an abbreviation of its --run-path
        help="Folder below runs/; the file's name if left out. Under torchrun write --run-name.",
    ),
]
Stage = Annotated[
    str,
    typer.Option(
        help="baseline, geta (channels and bits) or hesso (channels alone); if left out, what the "
        "file's compression_optimizer makes."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Seed = Annotated[
    int | None, typer.Option(help="Of weights, batches and augmentation; the file's, or 0.")
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
            distributed.leave(0)
        except TrainingStopped as stop:
            if not rank:
                typer.echo(str(stop), err=True)
            distributed.leave(128 + stop.signal)
            raise typer.Exit(128 + stop.signal) from stop
        except USER_ERRORS as error:
            if rank:  # if rank 0 meets it too, it says so, and torchrun ends this one
                time.sleep(3)
            typer.echo(f"{who}error: {error}", err=True)
            distributed.leave(2)
            raise typer.Exit(2) from error

    return wrapped


def _load(cfgs: Path, overrides: list[str]) -> Experiment:
    values = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"override {item!r} is not section.key=value")
        values[key] = read_value(text)
    return load_experiment(cfgs, values)


app.command("walkers")(_one_line_errors(walkers_command))


@app.command()
@_one_line_errors
def pretreat(
    src: Path,
    dst: Path,
    workers: Annotated[int | None, typer.Option(help="Processes; all cores if left out.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Make finished sequences again.")] = False,
) -> None:
    """Turn raw CASIA-B frames (a PNG tree or the subjects' .tar.gz) in SRC into pickles in DST."""
    report = pretreat_tree(src, dst, workers=workers, overwrite=overwrite, progress=True)
    typer.echo(str(report))
    for name, table in (("skipped", report.skipped), ("short", report.short)):
        if len(table):
            path = dst / f"pretreat_{name}.csv"
            table.to_csv(path, index=False)
            typer.echo(f"listed in {path}")


@app.command()
@_one_line_errors
def describe(
    cfgs: Cfgs,
    override: Overrides = [],  # noqa: B006 (typer's way to say none)
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show parameters and MACs of an experiment's network, block by block."""
    experiment = _load(cfgs, override)
    model = steps.build_network(experiment, torch.device("cpu"))
    blocks = network_cost.block_table(model)
    totals = {
        "params": network_cost.count_parameters(model),
        "macs_per_frame": network_cost.macs_per_frame(model),
    }
    if as_json:
        typer.echo(json.dumps({**totals, "blocks": blocks.to_dict("records")}))
        return
    typer.echo(blocks.to_string(index=False))
    typer.echo(
        f"{totals['params']:,} parameters, {totals['macs_per_frame'] / 1e9:.3f} GMAC a frame"
    )


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
        bool, typer.Option("--test/--no-test", help="Test when trained, and write results.json.")
    ] = True,
    force: Annotated[
        bool,
        typer.Option(help="Resume although the experiment says otherwise than the checkpoint."),
    ] = False,
) -> None:
    """Train a stage, test it, and write runs/<run>/<stage>/: what notebooks 02 and 03 do."""
    experiment = _load(cfgs, override)
    seed = read_yaml(cfgs).get("seed", 0) if seed is None else seed
    with distributed.process_group(device) as where:
        this = Run(run or cfgs.stem, experiment, seed, where)
        stage = steps.choose_stage(this, stage)
        watch = Watch(progress=sys.stderr.isatty())
        steps.run_stage(this, stage, watch, test=with_test, force=force)
        if with_test and distributed.is_main():
            typer.echo(summary_table(this.name))


@app.command()
@_one_line_errors
def test(
    cfgs: Cfgs,
    override: Overrides = [],  # noqa: B006
    run: RunName = "",
    stage: Stage = "",
    iteration: Annotated[int | None, typer.Option("--iter", help="Which checkpoint.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Any checkpoint, or a compressed_*.pt or .safetensors.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Test a checkpoint (evaluator_cfg.restore_hint by default); writes test-<name>.json."""
    experiment = _load(cfgs, override)
    with distributed.process_group(device) as where:
        this = Run(run or cfgs.stem, experiment, device=where)
        stage = steps.choose_stage(this, stage)
        checkpoint = checkpoint or steps.find_tested_checkpoint(this, stage, iteration)
        found = steps.evaluate_checkpoint(this, stage, checkpoint, progress=sys.stderr.isatty())
        if distributed.is_main():
            _show_evaluation(*found, this.name, stage)


def _show_evaluation(evaluation: Evaluation, path: Path, run: str, stage: str) -> None:
    """Print the accuracies of a test and draw its view-by-view figure."""
    results = to_results(evaluation)
    for metric in ("rank1", "rank5", "mAP"):
        for condition, value in results.get(metric, {}).items():
            typer.echo(f"{metric} {condition} {value} %")
    typer.echo(f"written: {path}")
    if maps := evaluation.rank1_by_view:
        figure = f"{run}/test-{stage}-{path.stem.removeprefix('test-')}"
        save_figure(view_heatmaps({runs.STAGES[stage].words: maps}), figure)
        typer.echo(f"view by view: {runs.figures_folder() / figure}.png")


@app.command("check-resume")
@_one_line_errors
def check_resume_(
    cfgs: Annotated[Path, typer.Option("--cfgs", help="The experiment to kill.")] = CHECKED,
    override: Overrides = [],  # noqa: B006
    kills: Annotated[int, typer.Option(help="How often.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the runs, and of the moments.")] = 0,
) -> None:
    """Kill a run at random moments, resume it, and compare it bit by bit with one never killed."""
    table = steps.check_resume(_load(cfgs, override), kills, seed=seed, on_kill=typer.echo)
    counts = table.groupby(["stage", "phase"], sort=False).agg(
        kills=("writing", "size"), while_writing=("writing", "sum")
    )
    typer.echo(counts.to_string())
    typer.echo(f"{kills} kills: weights, groups, optimizer state and metrics are identical")


@app.command("study")
@_one_line_errors
def study_(
    file: Annotated[Path, typer.Argument(help="The study's file, params/studies/*.yaml.")],
    scheduler: Annotated[
        str | None, typer.Option(help="A Dask scheduler, tcp://host:port; this machine if left out")
    ] = None,
    scheduler_file: Annotated[Path | None, typer.Option(help="The file with its address.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Points at once on this machine; as cores and memory allow if left out."),
    ] = None,
    device: Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the points and what they will cost alone.")
    ] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Write and print the table alone.")
    ] = False,
) -> None:
    """Run the points of a study that are missing or changed, and write runs/<study>/table.csv."""
    from gaitlib.study import expand, layer_table, point_table, read_plan, write_tables

    plan = read_plan(file)
    name, points = plan.name, expand(plan)
    if dry_run:
        _show_cost(name, points, workers, device)
        return
    failed = []
    if not table:
        with _extras("notebooks", "study"):
            from gaitlib.study.runner import run_study

        cluster = {"scheduler": scheduler, "scheduler_file": scheduler_file, "workers": workers}
        failed = run_study(name, points, **cluster, device=device).failed
    rows = point_table(name, points)
    if len(rows):
        typer.echo(rows.to_string(index=False))
        with _extras("study"):
            path = write_tables(runs.runs_folder() / name, rows, layer_table(name, points))
        typer.echo(f"{len(rows)} of {len(points)} points: {path}")
    else:
        typer.echo(f"none of {len(points)} points is done")
    if failed:
        typer.echo(f"failed, see failed.txt in runs/{name}/: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


@contextlib.contextmanager
def _extras(*names: str) -> Iterator[None]:
    """Say which extras bring a package that is not installed."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f'gaitlib study: {error}; pip install -e ".[{",".join(names)}]" brings it'
        ) from error


def _show_cost(name: str, points: Sequence["Point"], workers: int | None, device: str) -> None:
    """Print a study's points and what they take, from a smoke run or from those that are done."""
    with _extras("study"):
        from gaitlib.study.estimate import estimate, workers_for

    cost = estimate(name, points, device)
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
    out: Annotated[Path | None, typer.Option(help="Folder; the stage's own if left out.")] = None,
    round_sums: Annotated[
        bool, typer.Option(help="onnx-int8: faster, rounds residual sums too (needs the data).")
    ] = False,
) -> None:
    """Write a run's compressed network without its classifier: silhouettes in, embeddings out."""
    stage = compressed_stage(run)
    this = Run(run, load_experiment(runs.stage_file(run, stage, "config.yaml")))
    data = steps.open_data(this.experiment) if round_sums else None
    folder = out or this.folder(stage) / "compressed" / "embedding"
    path = steps.export_network(this, form, folder, data)
    typer.echo(f"{path.stat().st_size:,} bytes: {path}")


@app.command()
@_one_line_errors
def summary(run: str) -> None:
    """Print one table of a finished run: accuracy and cost, dense and compressed."""
    typer.echo(summary_table(run))
