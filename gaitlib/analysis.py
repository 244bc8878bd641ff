"""Tables about one compression, read from two networks or from a run's files."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from gaitlib import profile, runs
from gaitlib.checkpoint import load_checkpoint, restore_model
from gaitlib.compress.quantizer import quantization_of
from gaitlib.compress.subnet import load_compressed, load_dense
from gaitlib.config import Study
from gaitlib.evaluate import CONDITIONS
from gaitlib.model import GaitBase
from gaitlib.stages import export_network, open_data


def load_networks(
    run: str, device: str | torch.device = "cpu", stage: str = "geta"
) -> tuple[GaitBase, GaitBase]:
    """Rebuild the dense network that a stage cut (with new weights), and the compressed one.

    Raises:
        MissingRunError: if the stage has not finished.
    """
    folder = runs.stage_file(run, stage, "compressed/architecture.json").parent
    return load_dense(folder).to(device), load_compressed(folder, device=device)


def short_name(layer: str) -> str:
    """Return a layer's name as tables show it: the backbone's without its prefix."""
    return layer.removeprefix("Backbone.forward_block.")


def channels_kept(dense: GaitBase, small: GaitBase) -> pd.DataFrame:
    """Return how many output channels each convolution kept: name, kept, total, in order."""
    before, after = (
        table[table["layer"].str.startswith("Backbone.")]
        for table in (profile.layer_table(dense), profile.layer_table(small))
    )
    if list(before["layer"]) != list(after["layer"]):
        raise ValueError(f"not the same layers: {list(before['layer'])}, {list(after['layer'])}")
    return pd.DataFrame(
        {
            "name": before["layer"].map(short_name),
            "kept": after["out_channels"],
            "total": before["out_channels"],
        }
    )


def finished(run: str) -> dict[str, dict[str, Any]]:
    """Return the results of the stages that a run has finished, dense first, compressed last.

    Raises:
        MissingRunError: if the baseline or the GETA stage has not finished.
    """
    wanted = {"baseline", "geta", *runs.finished(run)}
    return {stage: runs.load_results(run, stage) for stage in runs.NAMES if stage in wanted}


def trade_table(results: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return what was paid and saved, a row a network.

    Columns:
        rank1_NM, rank1_BG, rank1_CL: %.
        params: numbers. MMAC: of the backbone, a frame. relative_bops: % of the dense network's.
        file_kb: of the low-bit file, or of the float weights where there are no bits.

    Args:
        results: of `finished`.
    """
    dense_macs = results["baseline"]["macs_per_frame"]
    rows = {}
    for stage, result in results.items():
        in_float = 100 * result["macs_per_frame"] / dense_macs  # 32 x 32 bits, as the dense one
        rows[runs.NAMES[stage]] = {
            **{f"rank1_{c}": result["rank1"][c] for c in CONDITIONS},
            "params": result["params"],
            "MMAC": result["macs_per_frame"] / 1e6,
            "relative_bops": result.get("relative_bops", in_float),
            "file_kb": result.get("lowbit_bytes", result["file_bytes"]) / 1e3,
        }
    return pd.DataFrame.from_dict(rows, orient="index").astype({"params": int})


def deployed(study: Study, run: str, *, seed: int = 0) -> dict[str, nn.Module]:
    """Return the networks of a run in the forms that they could be used in, by name.

    ``dense`` and ``compressed`` compute in torch. The others are ONNX files in ONNX Runtime with as
    many threads as torch uses, written beside the compressed network.

    Args:
        study: the run's.
        run: folder below runs/.
        seed: of the clips that calibrate integer kernels.
    """
    from gaitlib.compress import onnx  # an extra: pip install gaitlib[onnx]

    dense, small = load_networks(run)
    trained = runs.stage_file(run, "baseline", "checkpoints/*.pt")
    restore_model(dense, load_checkpoint(trained)["model"])
    folder, threads = runs.stage_dir(run, "geta") / "compressed" / "onnx", torch.get_num_threads()
    onnx.export_onnx(dense, folder / "dense.onnx")
    files = {"dense, ONNX": folder / "dense.onnx"}
    files["compressed, ONNX"] = export_network(study, run, "onnx", folder)
    if study.quantizes:
        files["compressed, int8"] = export_network(study, run, "onnx-int8", folder)
        rounded = export_network(
            study, run, "onnx-int8", folder / "rounded-sums", open_data(study), seed=seed
        )
        files["compressed, int8, rounded sums"] = rounded
        quantization_of(small).detach_from(small)  # torch has no integer kernels here
    networks = {"dense": dense.eval(), "compressed": small}
    return networks | {name: onnx.OnnxNetwork(f, threads) for name, f in files.items()}


def compare_latency(
    networks: Mapping[str, nn.Module], batches: Sequence[int] = (1, 16), rounds: int = 5
) -> pd.DataFrame:
    """Time networks in turn, A B A B, so that what else the machine does hits all alike.

    Args:
        networks: name to network; clips of 30 frames, embeddings alone.
        batches: clips at a time.
        rounds: measurements of each.

    Returns:
        A row a batch size, a column a network: median milliseconds.
    """
    rows = {}
    for batch in batches:
        times = [
            [profile.measure_latency(net, batch, repeats=2, warmup=1) for net in networks.values()]
            for _ in range(rounds)
        ]
        rows[f"{batch} clip(s)"] = np.median(times, axis=0)
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(networks))


def final_scores(run: str) -> pd.DataFrame:
    """Return the score that decided over each group of channels: layer, channel, score, kept.

    A group that was cut has its score at the choice that cut it; one that was kept, its score at
    the last choice. ``layer`` is the first of the layers whose channels go together.

    Raises:
        MissingRunError: if the GETA stage has left no scores.
    """
    table = pd.read_csv(runs.stage_file(run, "geta", "saliency.csv"))
    kept = table["state"] == "kept"
    decided = table[
        (table["state"] == "chosen") | (kept & (table["period"] == table["period"].max()))
    ]
    decided = decided.assign(
        layer=decided["group"].map(short_name),
        kept=decided["state"] == "kept",
    )
    order = {group: place for place, group in enumerate(table["group"].unique())}
    decided = decided.sort_values("group", key=lambda group: group.map(order), kind="stable")
    return decided[["layer", "channel", "score", "kept"]].reset_index(drop=True)
