"""Test a trained network, measure what it costs, and write results.json."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from gaitlib import evaluate
from gaitlib.data.batches import inference_batches
from gaitlib.data.casia_b import DataSplit
from gaitlib.deploy import cut_network
from gaitlib.model import GaitBase, network_cost
from gaitlib.model.float_state import float_state, quantization_of
from gaitlib.prune.graph import Graph
from gaitlib.quantize import bit_budget, bit_operations
from gaitlib.system import distributed
from gaitlib.system.device import choose_precision
from gaitlib.system.files import read_json, tensor_bytes, write_atomically
from gaitlib.train.training_cost import read_training_cost
from workbook import runs
from workbook.config import Experiment
from workbook.runs import Run
from workbook.steps.budgets import read_budget
from workbook.steps.dataset import network_arguments, transform_of

#: Where a stage says which of two networks it kept, see `workbook.steps.finish_bits`.
KEPT = "kept.json"


@contextlib.contextmanager
def float_arithmetic(model: nn.Module) -> Iterator[None]:
    """Let a network, quantized or not, compute in float in the block."""
    quantization = quantization_of(model)
    with contextlib.nullcontext() if quantization is None else quantization.disabled():
        yield


def check_test_set(experiment: Experiment, data: DataSplit) -> None:
    """Refuse a test set that the protocol cannot rank, before any training.

    Raises:
        UserError: as `gaitlib.evaluate.check_test_set`.
    """
    evaluate.check_test_set(data.test.table, experiment.protocol, data.lists)


def evaluate_network(
    experiment: Experiment, model: nn.Module, data: DataSplit
) -> tuple[Tensor, evaluate.Evaluation]:
    """Embed the test set and rank it by the experiment's protocol.

    In a distributed job every process calls it and embeds its share of the batches; rank 0 ranks.

    Returns:
        Embeddings float32 ``(n, C, P)`` in the order of ``data.test.table``, and the evaluation.
    """
    distributed.share_buffers(model)
    cfg, device = experiment.evaluator_cfg, next(model.parameters(), torch.empty(0)).device
    batches = inference_batches(
        data.test,
        cfg.sampler.build(),
        num_workers=experiment.data_cfg.num_workers,
        pin_memory=device.type == "cuda",
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    with choose_precision(cfg.enable_float16, experiment.trainer_cfg.amp_dtype, device).autocast():
        mine = evaluate.embed_batches(model, batches, transform_of(cfg), device)
    indices, shares = zip(*distributed.gather(mine), strict=True)
    features = evaluate.collect(
        torch.cat(indices), torch.cat([share for share in shares if len(share)])
    )
    evaluation = None
    if distributed.is_main():
        evaluation = evaluate.evaluate_features(
            features.to(device),
            data.test.table,
            experiment.protocol,
            cfg.metric,
            lists=data.lists,
            remove_no_gallery=experiment.data_cfg.remove_no_gallery,
        )
    return features, distributed.broadcast(evaluation)


def measure(model: GaitBase, file: Path | None = None) -> dict[str, Any]:
    """Return a network's costs under results.json's names.

    ``file_bytes`` is the size of the network's ``state_dict`` as torch saves it. Latency is that of
    the float arithmetic: rounding in float, as torch does it, is no deployment.

    Args:
        model: the network.
        file: its saved ``state_dict``; None saves it into memory.
    """
    if file is None:
        size = len(tensor_bytes(float_state(model)))
    else:
        size = network_cost.file_bytes(file)
    with float_arithmetic(model):
        latency = {
            f"batch_{n}": round(network_cost.measure_latency(model, batch=n, repeats=repeats), 2)
            for n, repeats in ((1, 20), (16, 5))
        }
    return {
        "params": network_cost.count_parameters(model),
        "macs_per_frame": network_cost.macs_per_frame(model),
        "file_bytes": size,
        "latency_ms": latency,
    }


def measure_bits(model: GaitBase, dense: GaitBase, file: Path) -> dict[str, Any]:
    """Return what quantization saves, under results.json's names.

    Args:
        model: compressed and quantized.
        dense: the network before pruning.
        file: the network file of ``model``.
    """
    table = bits_table(model)
    weight_bits = {n: grid.bits for n, grid in quantization_of(model).grids()[0].items()}
    return {
        "bits": bit_operations.average_bits(table),
        "bits_by_layer": table[["layer", "weight_bits", "activation_bits"]].to_dict("records"),
        "bops_per_frame": int(table.loc[table["per"] == "frame", "bops"].sum()),
        "relative_bops": bit_operations.relative_bops(table, network_cost.layer_table(dense)),
        "lowbit_bytes": network_cost.file_bytes(file),
        "lowbit_bytes_counted": bit_operations.disk_bits(model, weight_bits) // 8,
    }


def bits_table(model: GaitBase) -> pd.DataFrame:
    """Return `gaitlib.quantize.bit_operations.bops_table` of a network, quantized or not."""
    quantization = quantization_of(model)
    weights, inputs = ({}, {}) if quantization is None else quantization.grids()
    return bit_operations.bops_table(
        network_cost.layer_table(model),
        {name: grid.bits for name, grid in weights.items()},
        {name: grid.bits for name, grid in inputs.items()},
    )


def record(
    run: Run,
    stage: str,
    data: DataSplit,
    evaluation: evaluate.Evaluation,
    costs: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``results.json`` and ``hits.csv`` of a finished stage; return the results.

    A protocol with a submission file has it in ``submission.csv``.
    """
    evaluate.write_hits(evaluation.hits, run.folder(stage) / "hits.csv")
    if evaluation.submission is not None:
        answers = evaluation.submission.to_csv(index=False)
        write_atomically(run.folder(stage) / "submission.csv", answers)
    results = {
        "model": run.experiment.model_cfg.model,
        "dataset": data.name,
        "seed": run.seed,
        "iterations": run.experiment.trainer_cfg.total_iter,
        "device": str(run.device),
        "bits": {"weights": 32, "activations": 32},
        **evaluate.to_results(evaluation),
        **read_training_cost(run.folder(stage) / "history.csv"),
        **costs,
        **(extra or {}),
    }
    runs.save_results(run.name, stage, results)
    return runs.load_results(run.name, stage)


def compress_stage(
    run: Run, graph: Graph, model: GaitBase, stage: str | None = None
) -> cut_network.Compressed:
    """Cut the zeroed channels out of a trained network and write both into the stage.

    In a distributed job every process gets the small network; rank 0 writes.

    Args:
        run: of the stage.
        graph: of the network.
        model: trained.
        stage: the compressing stage; the run's own if None.
    """
    stage = stage or run.compressing_stage
    return cut_network.construct_compressed_model(
        graph,
        model,
        run.folder(stage) / "compressed" if distributed.is_main() else None,
        architecture=network_arguments(run.experiment),
        stage=stage,
    )


def record_compressed(
    run: Run,
    data: DataSplit,
    evaluation: evaluate.Evaluation,
    compressed: cut_network.Compressed,
    stage: str | None = None,
) -> dict[str, Any]:
    """Write a compressing stage's ``results.json``: the small network's, and the dense costs.

    After a run with a budget it says what was asked for and reached: `read_budget`, and for bits
    ``bit_budget``. If two networks were compared, ``kept`` says which one this is.
    """
    dense = compressed.full
    extra = {
        "dense": measure(dense),
        "group_sparsity": compressed.group_sparsity,
        "full_equals_compressed": compressed.max_error,
    }
    if quantization_of(compressed.model) is not None:
        extra |= measure_bits(compressed.model, dense, compressed.path)
    folder = run.folder(stage or run.compressing_stage)
    cfg = run.experiment.compression
    extra |= read_budget(cfg, folder, dense, compressed.model)
    bits = run.experiment.float_first
    if bits is not None and bits.budget is not None:
        extra["bit_budget"] = _bit_budget(*bits.budget, dense, extra)
    if (folder / KEPT).exists():
        extra["kept"] = read_json(folder / KEPT)
    costs = measure(compressed.model, compressed.state_dict_path)
    return record(run, stage or run.compressing_stage, data, evaluation, costs, extra)


def _bit_budget(
    key: str, asked: float, dense: GaitBase, results: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a budget for bits asked for, and what the network reached."""
    reached = {"target_bops": "bops_per_frame", "target_bytes": "lowbit_bytes_counted"}[key]
    terms = bit_budget.budget_terms(key, asked, dense)
    return terms | {"reached": results[reached]}
