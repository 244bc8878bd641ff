"""Two processes with half a batch each do what one does with the whole: gradients, groups, results.

Two gloo processes run everything once (`_rank`); each test compares a part with one process.
"""

import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from small_experiment import LATE_BITS, small_experiment

from gaitlib.data.batches import training_batches
from gaitlib.data.samplers import TripletSampling
from gaitlib.evaluate import to_results
from gaitlib.model import build_losses
from gaitlib.prune import oto
from gaitlib.system import distributed
from gaitlib.train.checkpoint import load_checkpoint, restore_model
from gaitlib.train.gathered_loss import GatheredLoss
from workbook import steps
from workbook.config import load_experiment
from workbook.runs import Run
from workbook.steps.dataset import transform_of

AUGMENTED = {
    "fix_BN": True,
    "transform": [
        {
            "type": "Compose",
            "trf_cfg": [
                {"type": "RandomRotate", "prob": 0.5},
                {"type": "BaseSilCuttingTransform"},
                {"type": "RandomErasing", "prob": 0.5},
            ],
        }
    ],
}


def _gradients(experiment, data):
    """Gradients of the first batch."""
    torch.manual_seed(0)
    model = steps.build_network(experiment, torch.device("cpu")).train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    share = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    sampling = TripletSampling(batch_size=(2, 2))
    (batch,) = training_batches(data.train, sampling, 1, range(1), **share)
    losses = build_losses([term.model_dump() for term in experiment.loss_cfg])
    clips = transform_of(experiment.evaluator_cfg)(batch.clips)
    with distributed.data_parallel(model) as network:
        total, scalars = GatheredLoss(losses)(network(clips), batch.labels)
        total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return gradients, total.detach(), scalars


def _pruned(experiment, data, run, device="cpu"):
    """Train and prune; give the weights, the state of the pruner and the history."""
    torch.manual_seed(0)
    model = steps.build_network(experiment, torch.device(device))
    optimizer = steps.build_optimizer(experiment, model, oto.trace(model))
    history = steps.train_stage(Run(run, experiment), "hesso", model, data, optimizer)
    return model, optimizer.pruner.state_dict(), history


def _late(experiment, data, run):
    """Prune in float, then round, with the float network as teacher."""
    experiment = load_experiment(experiment.sections(), LATE_BITS)
    torch.manual_seed(0)
    model = steps.build_network(experiment, torch.device("cpu"))
    graph = oto.trace(model)
    quantization = steps.attach_quantizers(experiment, model, data, seed=0)
    optimizer = steps.build_optimizer(experiment, model, graph, quantization)
    history = steps.train_stage(Run(run, experiment), "geta", model, data, optimizer)
    columns = ["total", "distillation/loss", "training_macs"]
    return {
        "weights": dict(model.state_dict()),
        "bits": optimizer.control.whole.tolist(),
        "history": history[columns].to_numpy().tolist(),
    }


def _everything(root, run):
    experiment = small_experiment(root, **AUGMENTED)
    data = steps.open_data(experiment)
    gradients, total, scalars = _gradients(experiment, data)
    model, pruner, history = _pruned(experiment, data, run)
    budget = load_experiment(experiment.sections(), {"hesso_optimizer_cfg.target_macs": 0.5})
    narrow, of_budget, narrow_history = _pruned(budget, data, f"{run}-budget")
    torch.manual_seed(0)
    fresh = steps.build_network(experiment, torch.device("cpu"))
    features, evaluation = steps.evaluate_network(experiment, fresh, data)
    return {
        "gradients": gradients,
        "total": total,
        "scalars": scalars,
        "weights": dict(model.state_dict()),
        "pruned": pruner["pruned"],
        "chosen": [choice["chosen"] for choice in pruner["choices"]],
        "scores": [choice["scores"] for choice in of_budget["choices"]],
        "chosen within a budget": [choice["chosen"] for choice in of_budget["choices"]],
        "narrow weights": dict(narrow.state_dict()),
        "losses within a budget": narrow_history["total"].tolist(),
        "late bits": _late(experiment, data, f"{run}-late"),
        "losses": history["total"].tolist(),
        "features": features,
        "results": to_results(evaluation),
    }


def _refusal(experiment, data, **trainer_cfg):
    cfg = experiment.trainer_cfg.model_copy(update=trainer_cfg)
    changed = experiment.model_copy(update={"trainer_cfg": cfg})
    try:
        _pruned(changed, data, "refused")
    except ValueError as error:
        return str(error)
    return "accepted"


def _join(rank, port, folder):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    os.environ["GAITLIB_WORKSPACE"] = str(folder)


def _rank(rank, port, root, folder):
    _join(rank, port, folder)
    with distributed.process_group("cpu"):
        found = _everything(root, "two")
        experiment = small_experiment(root)
        data = steps.open_data(experiment)
        found["sync_BN"] = _refusal(experiment, data, sync_BN=True)
        odd = experiment.trainer_cfg.sampler.model_copy(update={"batch_size": (3, 3)})
        found["indivisible"] = _refusal(experiment, data, sampler=odd)
        own, _, _ = _pruned(
            experiment, data, "own-statistics"
        )  # each rank normalises its own clips
        found["trained"] = to_results(steps.evaluate_network(experiment, own, data)[1])
        found["rows"] = distributed.gather_rows(torch.tensor([[rank], [rank + 2]]))
    torch.save(found, folder / f"{rank}.pt")
    os._exit(0)  # gloo's threads have been seen to abort a process at its ordinary end


def _rank_on_a_gpu(rank, port, root, folder, device):
    _join(rank, port, folder)
    with distributed.process_group(device, share_gpu=True) as chosen:
        found = _within_half(root, "two", chosen)
    torch.save(found, folder / f"{rank}.pt")
    os._exit(0)


def _within_half(root, run, device):
    """Train to half of the multiply-adds and test; give the widths, the losses and the results."""
    experiment = small_experiment(root, **AUGMENTED)
    experiment = load_experiment(experiment.sections(), {"hesso_optimizer_cfg.target_macs": 0.5})
    data = steps.open_data(experiment)
    model, _, history = _pruned(experiment, data, run, device)
    _, evaluation = steps.evaluate_network(experiment, model, data)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return {"shapes": shapes, "losses": history["total"].tolist(), "rank1": evaluation.rank1}


def _free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    root = folder / "walkers"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GAITLIB_WORKSPACE", str(folder))
            one = _everything(root, "one")
    finally:
        torch.set_num_threads(threads)
    mp.spawn(_rank, args=(_free_port(), root, folder), nprocs=2)
    two = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    saved = folder / "runs/own-statistics/hesso/checkpoints/GaitBase-00010.pt"
    experiment = small_experiment(root)
    model = steps.build_network(experiment, torch.device("cpu"))
    restore_model(model, load_checkpoint(saved)["model"])
    one["trained"] = to_results(
        steps.evaluate_network(experiment, model, steps.open_data(experiment))[1]
    )
    return one, two


def test_two_half_batches_give_the_gradients_of_the_whole_batch(found):
    one, two = found
    for rank in two:
        torch.testing.assert_close(rank["total"], one["total"])
        torch.testing.assert_close(rank["scalars"], one["scalars"])
        torch.testing.assert_close(rank["gradients"], one["gradients"], atol=1e-5, rtol=1e-5)


def test_two_processes_prune_the_same_groups_and_end_at_the_weights_of_one(found):
    one, two = found
    for rank in two:
        assert rank["chosen"] == one["chosen"] and rank["pruned"] == one["pruned"]
        assert any(one["pruned"].values())
        torch.testing.assert_close(rank["weights"], one["weights"], atol=1e-4, rtol=1e-4)
        assert rank["losses"] == pytest.approx(one["losses"], abs=1e-4)
    for name, weight in two[0]["weights"].items():
        assert torch.equal(weight, two[1]["weights"][name]), name


def test_importance_is_that_of_the_whole_batch(found):
    one, two = found
    assert any(map(any, (choice.values() for choice in one["chosen within a budget"])))
    for rank in two:
        torch.testing.assert_close(rank["scores"], one["scores"], atol=1e-6, rtol=1e-3)
        assert rank["chosen within a budget"] == one["chosen within a budget"]


def test_channels_leave_the_network_of_every_process_alike(found):
    one, two = found
    whole, narrow = (sum(w.numel() for w in one[k].values()) for k in ("weights", "narrow weights"))
    assert narrow < 0.9 * whole
    for rank in two:
        torch.testing.assert_close(
            rank["narrow weights"], one["narrow weights"], atol=1e-4, rtol=1e-4
        )
        assert rank["losses within a budget"] == pytest.approx(
            one["losses within a budget"], abs=1e-4
        )


def test_bits_that_come_late_are_the_same_in_every_process_and_learn_as_in_one(found):
    one, two = found
    wanted = one["late bits"]
    for rank in two:
        assert rank["late bits"]["bits"] == wanted["bits"]
        assert rank["late bits"]["history"][-1][1] > 0  # the teacher's term
        for step, (ours, theirs) in enumerate(
            zip(rank["late bits"]["history"], wanted["history"], strict=True)
        ):
            # once weights are rounded, the last digit may decide for a whole step of a grid
            assert ours == pytest.approx(theirs, abs=1e-4 if step < 6 else 0.1, rel=1e-4)
    first, second = (rank["late bits"]["weights"] for rank in two)
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


def test_a_sharded_evaluation_embeds_every_sequence_once_and_gives_one_processes_results(found):
    one, two = found
    for rank in two:
        assert torch.equal(rank["features"], one["features"])
        assert rank["results"] == one["results"]


def test_all_ranks_test_the_network_that_rank_0_saves(found):
    one, two = found
    assert two[0]["trained"] == two[1]["trained"] == one["trained"]


def test_rows_come_back_in_the_order_of_the_shared_batch(found):
    assert [rank["rows"].flatten().tolist() for rank in found[1]] == [[0, 1, 2, 3]] * 2


def test_what_two_processes_cannot_do_is_refused_with_the_reason(found):
    for rank in found[1]:
        assert "SyncBatchNorm on GPUs only. Write sync_BN: false" in rank["sync_BN"]
        assert "batch_size [3, 3] makes 9 clips" in rank["indivisible"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_two_processes_share_a_gpu_and_train_as_one(tmp_path, workspace):
    root = tmp_path / "walkers"
    one = _within_half(root, "one", "cuda:0")
    mp.spawn(_rank_on_a_gpu, args=(_free_port(), root, tmp_path, "cuda:0"), nprocs=2)
    for rank in (0, 1):
        two = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-2)
        assert two["shapes"] == one["shapes"] and two["rank1"].keys() == one["rank1"].keys()
