"""GETA's rival: prune with HESSO, and round afterwards to the bits that GETA chose."""

from typing import Any

import torch

from gaitlib.data.casia_b import DataSplit
from gaitlib.deploy.cut_network import load_compressed
from gaitlib.model.float_state import quantization_of
from gaitlib.quantize.ptq import round_after_training
from gaitlib.runs import Run
from gaitlib.steps.dataset import calibration_clips
from gaitlib.steps.networks import build_network
from gaitlib.steps.results import (
    evaluate_network,
    measure,
    measure_bits,
    record,
    write_lowbit_beside,
)


def round_pruned(run: Run, data: DataSplit) -> dict[str, Any]:
    """Round the ``hesso`` stage's network to the bits of the ``geta`` stage's; test it.

    Writes ``runs/<run>/ptq/``: results.json, hits.csv and the low-bit file.

    Args:
        run: both stages have finished in it; its seed draws the clips of the calibration.
        data: training clips calibrate, the test half tests.

    Raises:
        MissingRunError: if one of the two stages has not finished.
    """
    networks = {stage: run.file(stage, "compressed/compressed_*.pt") for stage in ("hesso", "geta")}
    of_weights, of_inputs = quantization_of(load_compressed(networks["geta"])).grids()
    model = round_after_training(
        load_compressed(networks["hesso"], run.device),
        {name: grid.bits for name, grid in of_weights.items()},
        {name: grid.bits for name, grid in of_inputs.items()},
        calibration_clips(run.experiment, data, seed=run.seed),
    )
    target = run.folder("ptq") / "compressed" / networks["hesso"].name
    file = write_lowbit_beside(run.experiment, model, target)
    _, evaluation = evaluate_network(run.experiment, model, data)
    costs = measure(model, networks["hesso"])
    dense = build_network(run.experiment, torch.device("cpu"))
    return record(run, "ptq", data, evaluation, costs | measure_bits(model, dense, file))
