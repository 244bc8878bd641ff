"""The networks of a finished run, in the forms that they could be used in, and how fast each is."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import nn

from gaitlib.deploy.network_file import load_dense, load_network
from gaitlib.model import GaitBase
from gaitlib.model.float_state import quantization_of
from gaitlib.model.network_cost import measure_latency
from gaitlib.train.checkpoint import load_weights
from workbook.runs import STAGES, Run
from workbook.steps.dataset import open_data
from workbook.steps.export import export_network


def load_networks(run: Run, stage: str | None = None) -> tuple[GaitBase, GaitBase]:
    """Rebuild the dense network that a stage cut (with new weights), and the compressed one.

    Args:
        run: of the stage.
        stage: the compressing stage; the run's own if None.

    Raises:
        MissingRunError: if the stage has not finished.
    """
    path = run.network_file(stage or run.compressing_stage)
    small = load_network(path, run.device)
    return load_dense(path).to(run.device), small


def deployed(run: Run) -> dict[str, nn.Module]:
    """Return the networks of a run in the forms that they could be used in, by name.

    ``dense`` and the compressed network, ``GETA`` or ``HESSO``, compute in torch. The others are
    ONNX files in ONNX Runtime with as many threads as torch uses, written beside the compressed
    network.

    Args:
        run: its baseline and its compressing stage have finished; all on the CPU.
    """
    from gaitlib.deploy import onnx_export  # an extra: pip install gaitlib[onnx]

    run = replace(run, device=torch.device("cpu"))
    stage, words = run.compressing_stage, STAGES[run.compressing_stage].words
    dense, small = load_networks(run)
    load_weights(run.file("baseline", "checkpoints/*.pt"), dense)
    folder, threads = run.folder(stage) / "compressed" / "onnx", torch.get_num_threads()
    onnx_export.export_onnx(dense, folder / "dense.onnx")
    files = {"dense, ONNX": folder / "dense.onnx"}
    files[f"{words}, ONNX"] = export_network(run, "onnx", folder)
    if run.experiment.quantizes:
        files[f"{words}, int8"] = export_network(run, "onnx-int8", folder)
        data = open_data(run.experiment)
        rounded = export_network(run, "onnx-int8", folder / "rounded-sums", data)
        files[f"{words}, int8, rounded sums"] = rounded
        quantization_of(small).detach_from(small)  # torch has no integer kernels here
    networks = {"dense": dense.eval(), words: small}
    return networks | {name: onnx_export.OnnxNetwork(f, threads) for name, f in files.items()}


def compare_latency(networks: Mapping[str, nn.Module]) -> pd.DataFrame:
    """Time networks in turn, A B A B, so that what else the machine does hits all alike.

    Args:
        networks: name to network; clips of 30 frames, embeddings alone.

    Returns:
        A row for 1 clip at a time and one for 16, a column per network: milliseconds, the median
        of 5 measurements.
    """
    rows = {}
    for batch in (1, 16):
        times = [
            [measure_latency(net, batch, repeats=2, warmup=1) for net in networks.values()]
            for _ in range(5)
        ]
        rows[f"{batch} clip(s)"] = np.median(times, axis=0)
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(networks))
