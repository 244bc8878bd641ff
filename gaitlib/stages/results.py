"""Test a trained network, measure what it costs, and write results.json."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaitlib import distributed, evaluate, profile, runs
from gaitlib.compress import oto, subnet
from gaitlib.config import Study
from gaitlib.data.sampler import inference_batches
from gaitlib.device import choose_precision
from gaitlib.model import GaitBase
from gaitlib.stages.data import StudyData, transform_of


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
    cfg, device = study.evaluator_cfg, next(model.parameters()).device
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

    ``file_bytes`` is the size of ``file``, or of the network's saved state_dict.
    """
    if file is None:
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        size = buffer.getbuffer().nbytes
    else:
        size = profile.file_bytes(file)
    return {
        "params": profile.count_parameters(model),
        "macs_per_frame": profile.macs_per_frame(model),
        "file_bytes": size,
        "latency_ms": {
            f"batch_{n}": round(profile.measure_latency(model, batch=n, repeats=repeats), 2)
            for n, repeats in ((1, 20), (16, 5))
        },
    }


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


def compress_stage(study: Study, run: str, graph: oto.Graph, model: GaitBase) -> subnet.Compressed:
    """Cut the zeroed groups out of a trained network and write both into the GETA stage.

    In a distributed job every process gets the small network; rank 0 writes.
    """
    folder = runs.stage_dir(run, "geta") / "compressed"
    return subnet.construct_compressed_model(
        graph,
        model,
        folder if distributed.is_main() else None,
        architecture=study.model_cfg.build_arguments(),
    )


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
) -> dict[str, Any]:
    """Write the GETA stage's ``results.json``: the compressed network's, and the dense costs."""
    return record(
        study,
        run,
        "geta",
        data,
        evaluation,
        measure(compressed.model, compressed.path),
        seed=seed,
        device=device,
        extra={
            "dense": measure(dense),
            "group_sparsity": compressed.group_sparsity,
            "full_equals_compressed": compressed.max_error,
        },
    )
