"""GETA's rival: prune with HESSO, and round afterwards to the bits that GETA chose."""

from typing import Any

import torch

from gaitlib.data.casia_b import DataSplit
from gaitlib.deploy import network_file
from gaitlib.model.network_cost import FLOAT_BITS
from gaitlib.model.widths import weight_names
from gaitlib.system.device import keep_freed_memory
from workbook.runs import Run, load_results
from workbook.steps.dataset import network_arguments
from workbook.steps.finish_bits import round_network
from workbook.steps.networks import build_network
from workbook.steps.results import (
    evaluate_network,
    measure,
    measure_bits,
    record,
)


def round_hesso(run: Run, data: DataSplit) -> dict[str, Any]:
    """Round the ``hesso`` stage's network to the bits of the ``geta`` stage's; test it.

    Writes ``runs/<run>/ptq/``: results.json, hits.csv and the network file.

    Args:
        run: both stages have finished in it; its seed draws the clips of the calibration.
        data: training clips calibrate, the test half tests.

    Raises:
        MissingRunError: if one of the two stages has not finished.
        LockedError: if another process writes this stage.
    """
    with run.locked("ptq"):
        keep_freed_memory(run.device)
        pruned = network_file.load_network(run.network_file("hesso"), run.device)
        # not from GETA's network file, which stores weights of more than 16 bits as floats
        rows = {row["layer"]: row for row in load_results(run.name, "geta")["bits_by_layer"]}
        inputs = {layer: row["activation_bits"] for layer, row in rows.items()}
        names = weight_names(pruned)
        model = round_network(
            run,
            pruned,
            {name: rows[layer]["weight_bits"] for layer, name in names.items()},
            {layer: bits for layer, bits in inputs.items() if bits != FLOAT_BITS},
            data,
        )
        path = network_file.network_path(run.folder("ptq") / "compressed", "ptq")
        file = network_file.write_network(model, network_arguments(run.experiment), path)
        _, evaluation = evaluate_network(run.experiment, model, data)
        costs = measure(model, run.file("hesso", "compressed/compressed_*.pt"))  # rounding keeps it
        dense = build_network(run.experiment, torch.device("cpu"))
        return record(run, "ptq", data, evaluation, costs | measure_bits(model, dense, file))
