"""The yardstick of GETA: prune, and round afterwards to the bits that GETA chose."""

from typing import Any

import torch

from gaitlib import runs
from gaitlib.compress.ptq import round_after_training
from gaitlib.compress.quantizer import quantization_of
from gaitlib.compress.subnet import load_compressed
from gaitlib.config import Study
from gaitlib.stages.build import build_network
from gaitlib.stages.data import StudyData, calibration_clips
from gaitlib.stages.results import (
    evaluate_network,
    measure,
    measure_bits,
    record,
    write_lowbit_beside,
)


def round_pruned(
    study: Study, run: str, data: StudyData, *, seed: int, device: torch.device
) -> dict[str, Any]:
    """Round the ``pruned`` stage's network to the bits of the ``geta`` stage's; test it.

    Writes ``runs/<run>/ptq/``: results.json, hits.csv and the low-bit file.

    Args:
        study: the study that both stages ran.
        run: folder below runs/.
        data: training clips calibrate, the test half tests.
        seed: of the calibration's clips.
        device: where it is tested.

    Raises:
        MissingRunError: if one of the two stages has not finished.
    """
    networks = {
        stage: runs.stage_file(run, stage, "compressed/compressed_*.pt")
        for stage in ("pruned", "geta")
    }
    of_weights, of_inputs = quantization_of(load_compressed(networks["geta"])).grids()
    model = round_after_training(
        load_compressed(networks["pruned"], device),
        {name: grid.bits for name, grid in of_weights.items()},
        {name: grid.bits for name, grid in of_inputs.items()},
        calibration_clips(study, data, seed=seed),
    )
    target = runs.stage_dir(run, "ptq") / "compressed" / networks["pruned"].name
    file = write_lowbit_beside(study, model, target)
    _, evaluation = evaluate_network(study, model, data)
    costs = measure(model, networks["pruned"])
    costs |= measure_bits(model, build_network(study, torch.device("cpu")), file)
    return record(study, run, "ptq", data, evaluation, costs, seed=seed, device=device)
