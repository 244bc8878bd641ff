"""The end of a quantized training: batch norms measured again, and the better network kept."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from gaitlib.data.casia_b import DataSplit, SilhouetteDataset
from gaitlib.model import GaitBase
from gaitlib.model.batch_norm import reestimate_batch_norms
from gaitlib.model.float_state import quantization_of
from gaitlib.quantize.ptq import round_after_training
from gaitlib.system import distributed
from gaitlib.system.errors import UserError
from gaitlib.system.files import write_atomically
from gaitlib.train.float_twin import FloatTwin
from workbook.runs import Run
from workbook.steps.dataset import calibration_clips
from workbook.steps.results import KEPT, check_test_set, evaluate_network

log = logging.getLogger(__name__)

#: Training subjects that the two networks are compared on, at most.
JUDGED_SUBJECTS = 32


def judged_half(data: DataSplit) -> DataSplit:
    """Return a split whose test half is training subjects, JUDGED_SUBJECTS at most."""
    table, first = data.train.table, data.train.subjects[:JUDGED_SUBJECTS]
    return replace(data, test=SilhouetteDataset(table[table["subject"].isin(first)]))


def check_judged(run: Run, data: DataSplit) -> None:
    """Refuse training subjects that the protocol cannot rank, before any training.

    Raises:
        UserError: with the reason and the key to leave out.
    """
    if run.experiment.protocol.submission is not None:
        raise UserError(
            "keep_better true compares networks by their accuracy, and protocol "
            f"{run.experiment.protocol.name} writes a submission instead. Write keep_better: false"
        )
    try:
        check_test_set(run.experiment, judged_half(data))
    except ValueError as error:
        raise UserError(
            f"keep_better true compares networks on training subjects, which cannot be ranked: "
            f"{error}. Write keep_better: false"
        ) from error


def finish_bits(run: Run, model: GaitBase, twin: FloatTwin | None, data: DataSplit) -> None:
    """Finish a quantized network after its last step; every process of a distributed job calls it.

    With ``batch_norm_batches`` the statistics of batch norms are measured again on training clips,
    unless ``fix_BN`` froze them. With ``keep_better`` the float network of the switch is rounded to
    the same bits. Mean rank-1 on training subjects decides between
    the two; at a draw the trained one stays. The choice is written to ``kept.json``.

    Args:
        run: of the stage ``geta``.
        model: changed in place.
        twin: as trained with; None without ``order: float_first``.
        data: its training half is used.
    """
    experiment, cfg = run.experiment, run.experiment.compression
    if not experiment.trainer_cfg.fix_BN:
        reestimate_batch_norms(model, _clips(run, data, cfg.batch_norm_batches))
    if twin is None or twin.network is None or not cfg.keep_better:
        return
    rounded = _rounded(run, model, twin.network, data)
    found = {
        name: _mean_rank1(run, network, data)
        for name, network in (("trained", model), ("rounded", rounded))
    }
    kept = "rounded" if found["rounded"] > found["trained"] else "trained"
    if kept == "rounded":
        model.load_state_dict(rounded.state_dict())
    log.info(
        "mean rank-1 on training subjects: %.2f trained with bits, %.2f rounded; %s is kept",
        *(found["trained"], found["rounded"], kept),
    )
    if distributed.is_main():
        text = json.dumps({"weights": kept, "rank1_of_training_subjects": found}, indent=1)
        write_atomically(run.folder("geta") / KEPT, text + "\n")


def _clips(run: Run, data: DataSplit, count: int) -> list[torch.Tensor]:
    return calibration_clips(run.experiment, data, seed=run.seed, count=count) if count else []


def _rounded(run: Run, model: GaitBase, network: GaitBase, data: DataSplit) -> GaitBase:
    """Return the float network rounded to the model's bits."""
    weights, inputs = quantization_of(model).grids()
    weight_bits = {name: grid.bits for name, grid in weights.items()}
    return round_network(
        run, network, weight_bits, {layer: grid.bits for layer, grid in inputs.items()}, data
    )


def round_network(
    run: Run,
    network: GaitBase,
    weight_bits: Mapping[str, int],
    input_bits: Mapping[str, int],
    data: DataSplit,
) -> GaitBase:
    """Return a float network rounded on the run's training clips, see `GetaCfg.rounding`.

    Args:
        run: of a compressing stage.
        network: in float; not changed.
        weight_bits: whole bits of every quantized weight, by parameter name.
        input_bits: whole bits of every quantized input, by layer name.
        data: its training half is used.
    """
    rounding = run.experiment.compression.rounding
    return round_after_training(
        network,
        weight_bits,
        input_bits,
        calibration_clips(run.experiment, data, seed=run.seed),
        rounding,
        _clips(run, data, rounding.batch_norm_batches),
    )


def _mean_rank1(run: Run, network: GaitBase, data: DataSplit) -> float:
    _, evaluation = evaluate_network(run.experiment, network, judged_half(data))
    values = [value for value in evaluation.rank1.values() if np.isfinite(value)]
    return float(np.mean(values))
