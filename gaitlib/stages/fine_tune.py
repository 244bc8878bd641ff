"""The way of torch-pruning's users: cut a trained network at once, and train on what is left."""

from datetime import datetime

import torch

from gaitlib import runs
from gaitlib.compress import subnet
from gaitlib.compress.torch_pruning import prune_to_macs
from gaitlib.config import Study
from gaitlib.random_state import seed_streams
from gaitlib.stages.build import baseline_weights, build_network, build_optimizer
from gaitlib.stages.data import open_data
from gaitlib.stages.results import check_test_set, evaluate_network, measure, record
from gaitlib.stages.training import OnHistory, train_stage


def cut_and_fine_tune(
    study: Study,
    run: str,
    macs: int,
    *,
    seed: int,
    device: torch.device,
    on_history: OnHistory | None = None,
) -> None:
    """Cut the run's baseline to its channels of largest norm, fine-tune it densely, and test it.

    Writes ``runs/<run>/geta/``, as a stage that compresses does.

    Args:
        study: a dense one; its steps fine-tune.
        run: folder below runs/, with a finished baseline.
        macs: of the backbone, a frame, that are to be left.
        seed: of batches and augmentation.
        device: where it is trained and tested.
        on_history: called with the history so far.

    Raises:
        MissingRunError: if the baseline has not been trained.
    """
    data = open_data(study)
    check_test_set(study, data)
    seed_streams(seed)
    dense = build_network(study, device)
    baseline_weights(study, run, dense)
    model = prune_to_macs(dense, macs)
    optimizer = build_optimizer(study, model)
    train_stage(study, run, "geta", model, data, optimizer, seed=seed, on_history=on_history)
    model.eval()
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    path = runs.stage_dir(run, "geta") / "compressed" / f"compressed_gaitbase_geta_{stamp}.pt"
    subnet.write_network(model, study.model_cfg.build_arguments(), path)
    _, evaluation = evaluate_network(study, model, data)
    costs = measure(model, path) | {"dense": measure(dense)}
    record(study, run, "geta", data, evaluation, costs, seed=seed, device=device)
