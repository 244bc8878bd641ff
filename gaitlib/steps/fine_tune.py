"""The way of torch-pruning's users: cut a trained network at once, and train on what is left."""

from gaitlib.deploy.network_file import network_path, write_network
from gaitlib.deploy.state_dict_export import export_state_dict
from gaitlib.prune.torch_pruning import prune_to_macs
from gaitlib.runs import Run
from gaitlib.steps.dataset import open_data
from gaitlib.steps.networks import baseline_weights, build_network, build_optimizer
from gaitlib.steps.results import check_test_set, evaluate_network, measure, record
from gaitlib.steps.run_stage import prepare_process
from gaitlib.steps.train_stage import Watch, train_stage

STAGE = "torch_pruning"


def cut_and_fine_tune(run: Run, macs: int, watch: Watch = Watch()) -> None:  # noqa: B008 (frozen)
    """Cut the run's baseline to its channels of largest norm, fine-tune it densely, and test it.

    Writes ``runs/<run>/torch_pruning/``, as a stage that compresses does.

    Args:
        run: of a dense experiment, whose steps fine-tune; its baseline is finished.
        macs: of the backbone per frame, that are to be left.
        watch: who is told how it goes.

    Raises:
        MissingRunError: if the baseline has not been trained.
    """
    data = open_data(run.experiment)
    check_test_set(run.experiment, data)
    prepare_process(run)
    dense = build_network(run.experiment, run.device)
    baseline_weights(run, dense)
    model = prune_to_macs(dense, macs)
    optimizer = build_optimizer(run.experiment, model)
    train_stage(run, STAGE, model, data, optimizer, watch)
    model.eval()
    path = network_path(run.folder(STAGE) / "compressed", STAGE)
    exported = export_state_dict(model, path.with_suffix(".pt"))
    write_network(model, run.experiment.model_cfg.build_arguments(), path)
    _, evaluation = evaluate_network(run.experiment, model, data)
    costs = measure(model, exported) | {"dense": measure(dense)}
    record(run, STAGE, data, evaluation, costs)
