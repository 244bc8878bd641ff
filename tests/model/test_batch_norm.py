import copy

import nets
import torch
from torch import nn

from gaitlib.model.batch_norm import normalised_convolutions, reestimate_batch_norms


def test_statistics_are_the_means_over_the_batches():
    model = nets.with_statistics(nets.build(nets.resnet(4, 8, embedding=6))).eval()
    before = copy.deepcopy(model.state_dict())
    batches = [nets.clips(3, 2, 32, 22, seed=s) for s in range(3)]
    reestimate_batch_norms(model, batches)
    first, norm = model.Backbone.forward_block.conv1, model.Backbone.forward_block.bn1
    with torch.no_grad():
        maps = [first(b.flatten(0, 1)[:, None]).transpose(0, 1).flatten(1) for b in batches]
    torch.testing.assert_close(norm.running_mean, torch.stack([m.mean(1) for m in maps]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([m.var(1) for m in maps]).mean(0))
    assert not model.training
    after = copy.deepcopy(model.state_dict())
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    changed = {n for n, v in before.items() if not torch.equal(v, after[n])}
    assert changed == {n for n in before if n.endswith(statistics)}
    reestimate_batch_norms(model, batches)  # twice is once
    reestimate_batch_norms(model, [])  # and without clips nothing changes
    assert all(torch.equal(v, after[n]) for n, v in model.state_dict().items())


def test_the_convolutions_in_front_of_batch_norms_are_found_where_data_flows():
    model = nets.build(nets.resnet(4, 8))
    found = normalised_convolutions(model.train())
    block = "Backbone.forward_block"
    assert found[f"{block}.conv1.conv"] == f"{block}.bn1"
    assert found[f"{block}.layer2.0.downsample.0"] == f"{block}.layer2.0.downsample.1"
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert list(found) == [n for n in convolutions if n in found] and len(found) == 6
    assert model.training
    assert normalised_convolutions(nets.build(nets.plain("BC-4", "M", "BC-8"))) == {}
