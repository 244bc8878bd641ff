"""Test a trained network, measure what it costs, and write results.json."""

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from gaitlib import distributed, evaluate, profile, runs
from gaitlib.compress import bops, lowbit, oto, subnet
from gaitlib.compress.quantizer import float_state, quantization_of
from gaitlib.config import Study
from gaitlib.data.sampler import inference_batches
from gaitlib.device import choose_precision, keep_freed_memory
from gaitlib.model import GaitBase
from gaitlib.stages.data import StudyData, transform_of

LOWBIT = ".safetensors"


@contextlib.contextmanager
def float_arithmetic(model: nn.Module) -> Iterator[None]:
    """Let a network, quantized or not, compute in float in the block."""
    quantization = quantization_of(model)
    with contextlib.nullcontext() if quantization is None else quantization.disabled():
        yield


def check_test_set(study: Study, data: StudyData) -> None:
    """Refuse a test set that the protocol cannot rank, before any training.

    Raises:
        ValueError: as `gaitlib.evaluate.check_test_set`.
    """
    evaluate.check_test_set(data.test.table, study.evaluator_cfg.cross_view_gallery)


def evaluate_network(
    study: Study, model: nn.Module, data: StudyData
) -> tuple[Tensor, evaluate.Evaluation]:
    """Embed the test set and rank it by the study's protocol.

    In a distributed job every process calls it and embeds its share of the batches; rank 0 ranks.

    Returns:
        Embeddings float32 ``(n, C, P)`` in the order of ``data.test.table``, and the evaluation.
    """
    distributed.share_buffers(model)
    cfg, device = study.evaluator_cfg, next(model.parameters(), torch.empty(0)).device
    keep_freed_memory(device)
    batches = inference_batches(
        data.test,
        batch_size=cfg.sampler.batch_size,
        frames_all_limit=cfg.sampler.frames_all_limit,
        num_workers=study.data_cfg.num_workers,
        pin_memory=device.type == "cuda",
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    with choose_precision(cfg.enable_float16, cfg.amp_dtype, device).autocast():
        mine = evaluate.embed_batches(model, batches, transform_of(cfg), device)
    indices, shares = zip(*distributed.gather(mine), strict=True)
    features = evaluate.collect(
        torch.cat(indices), torch.cat([share for share in shares if len(share)])
    )
    evaluation = None
    if distributed.is_main():
        evaluation = evaluate.evaluate_indoor(
            features.to(device),
            data.test.table,
            cfg.metric,
            cfg.cross_view_gallery,
            remove_no_gallery=study.data_cfg.remove_no_gallery,
        )
    return features, distributed.broadcast(evaluation)


def measure(model: GaitBase, file: Path | None = None) -> dict[str, Any]:
    """Return a network's costs under results.json's names.

    ``file_bytes`` is the size of ``file``, or of the network's saved state_dict. Latency is that of
    the float arithmetic: rounding in float, as torch does it, is no deployment.
    """
    if file is None:
        buffer = io.BytesIO()
        torch.save(float_state(model), buffer)
        size = buffer.getbuffer().nbytes
    else:
        size = profile.file_bytes(file)
    with float_arithmetic(model):
        latency = {
            f"batch_{n}": round(profile.measure_latency(model, batch=n, repeats=repeats), 2)
            for n, repeats in ((1, 20), (16, 5))
        }
    return {
        "params": profile.count_parameters(model),
        "macs_per_frame": profile.macs_per_frame(model),
        "file_bytes": size,
        "latency_ms": latency,
    }


def measure_bits(model: GaitBase, dense: GaitBase, file: Path) -> dict[str, Any]:
    """Return what quantization saves, under results.json's names.

    Args:
        model: compressed and quantized.
        dense: the network before pruning.
        file: the low-bit file of ``model``.
    """
    table = bits_table(model)
    weight_bits = {n: grid.bits for n, grid in quantization_of(model).grids()[0].items()}
    return {
        "bits": bops.average_bits(table),
        "bits_by_layer": table[["layer", "weight_bits", "activation_bits"]].to_dict("records"),
        "bops_per_frame": int(table.loc[table["per"] == "frame", "bops"].sum()),
        "relative_bops": bops.relative_bops(table, profile.layer_table(dense)),
        "lowbit_bytes": profile.file_bytes(file),
        "lowbit_bytes_counted": bops.disk_bits(model, weight_bits) // 8,
    }


def bits_table(model: GaitBase) -> pd.DataFrame:
    """Return `gaitlib.compress.bops.bops_table` of a network, quantized or not."""
    quantization = quantization_of(model)
    weights, inputs = ({}, {}) if quantization is None else quantization.grids()
    return bops.bops_table(
        profile.layer_table(model),
        {name: grid.bits for name, grid in weights.items()},
        {name: grid.bits for name, grid in inputs.items()},
    )


def record(
    study: Study,
    run: str,
    stage: str,
    data: StudyData,
    evaluation: evaluate.Evaluation,
    costs: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``results.json`` and ``hits.csv`` of a finished stage; return the results."""
    evaluate.write_hits(evaluation.hits, runs.stage_dir(run, stage) / "hits.csv")
    results = {
        "model": study.model_cfg.model,
        "dataset": data.name,
        "seed": seed,
        "iterations": study.trainer_cfg.total_iter,
        "device": str(device),
        "bits": {"weights": 32, "activations": 32},
        **evaluate.to_results(evaluation),
        **costs,
        **(extra or {}),
    }
    runs.save_results(run, stage, results)
    return runs.load_results(run, stage)


def compress_stage(
    study: Study, run: str, graph: oto.Graph, model: GaitBase, stage: str = "geta"
) -> subnet.Compressed:
    """Cut the zeroed groups out of a trained network and write both into the stage.

    A quantized one is also written with its weights as integers of their own bits. In a distributed
    job every process gets the small network; rank 0 writes.
    """
    folder = runs.stage_dir(run, stage) / "compressed"
    compressed = subnet.construct_compressed_model(
        graph,
        model,
        folder if distributed.is_main() else None,
        architecture=study.model_cfg.build_arguments(),
    )
    if study.quantizes and distributed.is_main():
        write_lowbit_beside(study, compressed.model, compressed.path)
    return compressed


def write_lowbit_beside(study: Study, model: GaitBase, path: Path) -> Path:
    """Write a quantized network's low-bit file under the name of ``path`` with another suffix."""
    grids = quantization_of(model).grids()
    architecture = study.model_cfg.build_arguments()
    return lowbit.write_lowbit(model, architecture, *grids, path.with_suffix(LOWBIT))


def record_compressed(
    study: Study,
    run: str,
    data: StudyData,
    evaluation: evaluate.Evaluation,
    dense: GaitBase,
    compressed: subnet.Compressed,
    *,
    seed: int,
    device: torch.device,
    stage: str = "geta",
) -> dict[str, Any]:
    """Write a compressing stage's ``results.json``: the small network's, and the dense costs."""
    extra = {
        "dense": measure(dense),
        "group_sparsity": compressed.group_sparsity,
        "full_equals_compressed": compressed.max_error,
    }
    if quantization_of(compressed.model) is not None:
        extra |= measure_bits(compressed.model, dense, compressed.path.with_suffix(LOWBIT))
    costs = measure(compressed.model, compressed.path)
    return record(study, run, stage, data, evaluation, costs, seed=seed, device=device, extra=extra)
