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

from gaitlib import distributed, profile, runs, stages
from gaitlib.check_resume import ResumeError, check_resume
from gaitlib.checkpoint import CheckpointError, find_checkpoint, load_checkpoint, restore_model
from gaitlib.compress import oto, subnet
from gaitlib.config import ConfigError, Study, load_study, read_value, read_yaml
from gaitlib.data.pretreat import pretreat_tree
from gaitlib.data.walker import make_walkers
from gaitlib.data.workers import WorkerError
from gaitlib.evaluate import Evaluation, to_results
from gaitlib.plots import save_figure, view_heatmaps
from gaitlib.stop import TrainingStopped, exit_on_sigterm
from gaitlib.summary import summary_table
from gaitlib.train import NonFiniteLossError

if TYPE_CHECKING:
    from gaitlib.study import Point

app = typer.Typer(
    help="Compress GaitBase in one training run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

#: What a user can mend: every other exception is a defect of ours, and keeps its traceback.
MENDABLE = (
    stages.ProcessesFailedError,
    distributed.LostProcessError,
    ResumeError,
    WorkerError,
    OSError,
    ValueError,  # ConfigError and CheckpointError among them
    NonFiniteLossError,
    FloatingPointError,
    subnet.CompressionError,
    oto.UnsupportedTorchError,
)

#: The study of ``check-resume``.
CHECKED = runs.PARAMS / "check_resume.yaml"

Cfgs = Annotated[Path, typer.Option("--cfgs", help="The study's YAML file.")]
Overrides = Annotated[
    list[str], typer.Option("-o", "--override", help="section.key=value; may be repeated.")
]
Run = Annotated[
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
        help="baseline, geta (compressed; the default if the file has a compression_optimizer), or "
        "pruned (as geta, without bits)."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Seed = Annotated[
    int | None, typer.Option(help="Of weights, batches and augmentation; the file's, or 0.")
]


def _one_line_errors(verb: Callable[..., None]) -> Callable[..., None]:
    """Turn what a user can mend into one message and exit status 2."""

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
        except MENDABLE as error:
            if rank:  # if rank 0 meets it too, it says so, and torchrun ends this one
                time.sleep(3)
            typer.echo(f"{who}error: {error}", err=True)
            distributed.leave(2)
            raise typer.Exit(2) from error

    return wrapped


def _load(cfgs: Path, overrides: list[str]) -> Study:
    values = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"override {item!r} is not section.key=value")
        values[key] = read_value(text)
    return load_study(cfgs, values)


def _stage_of(study: Study, stage: str) -> str:
    if stage and stage not in stages.TRAINED:
        raise ConfigError(f"--stage {stage!r}: choose from {', '.join(stages.TRAINED)}")
    stage = stage or ("geta" if study.compression is not None else "baseline")
    if stage != "baseline":
        stages.require_compression(study)
    return stage


@app.command()
@_one_line_errors
def walkers(
    dst: Path,
    subjects: int = 34,
    train: int = 24,
    frames: tuple[int, int] = (16, 20),
    seed: int = 0,
    noise: float = 1.0,
    workers: Annotated[int | None, typer.Option(help="Processes; all cores if left out.")] = None,
    raw: Annotated[bool, typer.Option(help="Write PNG frames instead of pickles.")] = False,
) -> None:
    """Make the embedded data set: procedural walkers as a CASIA-B-pkl tree in DST."""
    make_walkers(
        dst,
        subjects=subjects,
        train=train,
        frames=frames,
        seed=seed,
        noise=noise,
        workers=workers,
        raw=raw,
        progress=True,
    )
    typer.echo(f"{subjects} walkers, {train} to train on: {dst}")


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
    """Show parameters and MACs of a study's network, block by block."""
    study = _load(cfgs, override)
    model = stages.build_network(study, torch.device("cpu"))
    blocks = profile.block_table(model)
    totals = {
        "params": profile.count_parameters(model),
        "macs_per_frame": profile.macs_per_frame(model),
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
    run: Run = "",
    stage: Stage = "",
    device: Device = "auto",
    seed: Seed = None,
    with_test: Annotated[
        bool, typer.Option("--test/--no-test", help="Test when trained, and write results.json.")
    ] = True,
    force: Annotated[
        bool, typer.Option(help="Resume although the study says otherwise than the checkpoint.")
    ] = False,
) -> None:
    """Train a stage, test it, and write runs/<run>/<stage>/: what notebooks 02 and 03 do."""
    study, run = _load(cfgs, override), run or cfgs.stem
    stage = _stage_of(study, stage)
    seed = read_yaml(cfgs).get("seed", 0) if seed is None else seed
    with distributed.process_group(device) as where:
        stages.run_stage(
            study,
            run,
            stage,
            where,
            seed=seed,
            test=with_test,
            force=force,
            progress=sys.stderr.isatty(),
        )
        if with_test and distributed.is_main():
            typer.echo(summary_table(run))


@app.command()
@_one_line_errors
def test(
    cfgs: Cfgs,
    override: Overrides = [],  # noqa: B006
    run: Run = "",
    stage: Stage = "",
    iteration: Annotated[int | None, typer.Option("--iter", help="Which checkpoint.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Any checkpoint, or a compressed_*.pt or .safetensors.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Test a checkpoint (evaluator_cfg.restore_hint by default); writes test-<name>.json."""
    study, run = _load(cfgs, override), run or cfgs.stem
    stage = _stage_of(study, stage)
    if checkpoint is None:
        folder = runs.stage_dir(run, stage) / "checkpoints"
        hint = study.evaluator_cfg.restore_hint if iteration is None else iteration
        checkpoint = find_checkpoint(folder, study.trainer_cfg.save_name, hint or "latest")
    if checkpoint is None:
        raise CheckpointError(f"{run}/{stage} has no checkpoint: train it, or give --checkpoint")
    with distributed.process_group(device) as where:
        if checkpoint.suffix == stages.LOWBIT or subnet.describes(checkpoint):
            model = subnet.load_compressed(checkpoint, device=where)
        else:
            model = stages.build_network(study, where)
            weights = load_checkpoint(checkpoint, where)["model"]
            stages.attach_quantizers_of(study, model, weights)
            restore_model(model, weights, study.evaluator_cfg.restore_ckpt_strict)
        data = stages.open_data(study, progress=sys.stderr.isatty())
        stages.check_test_set(study, data)
        _, evaluation = stages.evaluate_network(study, model, data)
        if distributed.is_main():
            _show_evaluation(evaluation, run, stage, checkpoint.stem)


def _show_evaluation(evaluation: Evaluation, run: str, stage: str, name: str) -> None:
    """Write test-<name>.json and the view-by-view figure; print the accuracies."""
    results = to_results(evaluation)
    path = runs.stage_dir(run, stage) / f"test-{name}.json"
    runs.write_atomically(path, json.dumps(results, indent=1, sort_keys=True) + "\n")
    for metric in ("rank1", "rank5", "mAP"):
        for condition, value in results.get(metric, {}).items():
            typer.echo(f"{metric} {condition} {value} %")
    typer.echo(f"written: {path}")
    if maps := evaluation.rank1_by_view:
        figure = f"{run}/test-{stage}-{name}"
        save_figure(view_heatmaps({stage: maps}), figure)
        typer.echo(f"view by view: {runs.FIGURES / figure}.png")


@app.command("check-resume")
@_one_line_errors
def check_resume_(
    cfgs: Annotated[Path, typer.Option("--cfgs", help="The study to kill.")] = CHECKED,
    override: Overrides = [],  # noqa: B006
    kills: Annotated[int, typer.Option(help="How often.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the runs, and of the moments.")] = 0,
) -> None:
    """Kill a run at random moments, resume it, and compare it bit by bit with one never killed."""
    table = check_resume(_load(cfgs, override), kills, seed=seed, on_kill=typer.echo)
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
            path = write_tables(runs.RUNS / name, rows, layer_table(name, points))
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
        from gaitlib.study.cost import estimate, workers_for

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
        str, typer.Option("--format", help=f"One of {', '.join(stages.FORMATS)}.")
    ] = "pt",
    out: Annotated[Path | None, typer.Option(help="Folder; the stage's own if left out.")] = None,
    round_sums: Annotated[
        bool, typer.Option(help="onnx-int8: faster, rounds residual sums too (needs the data).")
    ] = False,
) -> None:
    """Write a run's compressed network without its classifier: silhouettes in, embeddings out."""
    study = load_study(runs.stage_file(run, "geta", "config.yaml"))
    data = stages.open_data(study) if round_sums else None
    folder = out or runs.stage_dir(run, "geta") / "compressed" / "embedding"
    path = stages.export_network(study, run, form, folder, data)
    typer.echo(f"{path.stat().st_size:,} bytes: {path}")


@app.command()
@_one_line_errors
def summary(run: str) -> None:
    """Print one table of a finished run: accuracy and cost, dense and compressed."""
    typer.echo(summary_table(run))
