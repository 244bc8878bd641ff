"""The way of torch-pruning's users: cut a trained network at once, and train on what is left."""

from gaitlib.deploy.network_file import network_path, write_network
from gaitlib.deploy.state_dict_export import export_state_dict
from workbook.runs import Run
from workbook.steps.dataset import network_arguments, open_data
from workbook.steps.networks import baseline_weights, build_network, build_optimizer
from workbook.steps.results import check_test_set, evaluate_network, measure, record
from workbook.steps.run_stage import prepare_process
from workbook.steps.train_stage import Watch, train_stage

STAGE = "torch_pruning"


def cut_and_fine_tune(
    run: Run,
    macs: int,
    watch: Watch = Watch(),  # noqa: B008 (frozen)
    *,
    isomorphic: bool = False,
) -> None:
    """Cut the run's baseline to its channels of largest norm, fine-tune it densely, and test it.

    Writes ``runs/<run>/torch_pruning/``, as a stage that compresses does.

    Args:
        run: of a dense experiment, whose steps fine-tune; its baseline is finished.
        macs: of the backbone per frame, that are to be left.
        watch: who is told how it goes.
        isomorphic: as in `prune_to_macs`.

    Raises:
        MissingRunError: if the baseline has not been trained.
        LockedError: if another process writes this stage.
    """
    from workbook.steps.torch_pruning_rival import prune_to_macs  # an extra

    with run.locked(STAGE):
        data = open_data(run.experiment)
        check_test_set(run.experiment, data)
        prepare_process(run)
        dense = build_network(run.experiment, run.device)
        baseline_weights(run, dense)
        model = prune_to_macs(dense, macs, isomorphic=isomorphic)
        optimizer = build_optimizer(run.experiment, model)
        train_stage(run, STAGE, model, data, optimizer, watch)
        model.eval()
        path = network_path(run.folder(STAGE) / "compressed", STAGE)
        exported = export_state_dict(model, path.with_suffix(".pt"))
        write_network(model, network_arguments(run.experiment), path)
        _, evaluation = evaluate_network(run.experiment, model, data)
        costs = measure(model, exported) | {"dense": measure(dense)}
        record(run, STAGE, data, evaluation, costs)
