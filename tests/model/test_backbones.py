import pytest
import torch
import torch.nn.functional as F

from gaitlib.model.backbones import FocalConv2d, Plain, ResidualUnit, ResNet9


def test_resnet9_has_the_checkpoint_keys_of_opengait():
    model = ResNet9(channels=[4, 8, 8, 8])
    layers = ["conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias"]
    projection = ["downsample.0.weight", "downsample.1.weight", "downsample.1.bias"]
    expected = ["conv1.conv.weight", "bn1.weight", "bn1.bias"]
    for i in (1, 2, 3, 4):
        projects = i in (2, 3)  # a stride, here with or without more channels
        expected += [f"layer{i}.0.{k}" for k in layers + (projection if projects else [])]
    assert [name for name, _ in model.named_parameters()] == expected


@pytest.mark.parametrize("block", ["BasicBlock", "Bottleneck"])
def test_a_residual_unit_is_its_convolutions_and_a_shortcut(block):
    unit = ResidualUnit(block, 3, 2, stride=2)
    x = torch.randn(2, 3, 8, 6)
    if block == "BasicBlock":
        y = F.relu(unit.bn1(F.conv2d(x, unit.conv1.weight, stride=2, padding=1)))
        y = unit.bn2(F.conv2d(y, unit.conv2.weight, padding=1))
    else:
        y = F.relu(unit.bn1(F.conv2d(x, unit.conv1.weight)))
        y = F.relu(unit.bn2(F.conv2d(y, unit.conv2.weight, stride=2, padding=1)))
        y = unit.bn3(F.conv2d(y, unit.conv3.weight))
    shortcut = unit.downsample[1](F.conv2d(x, unit.downsample[0].weight, stride=2))
    torch.testing.assert_close(unit(x), F.relu(y + shortcut))
    assert unit(x).shape == (2, 2 if block == "BasicBlock" else 8, 4, 3)


@pytest.mark.parametrize("block", ["BasicBlock", "Bottleneck"])
@pytest.mark.parametrize("layers", [[1], [1, 2], [2, 0, 1]])
def test_resnet9_takes_any_number_of_stages(block, layers):
    n = len(layers)
    model = ResNet9(block, 1, [4, 8, 6][:n], layers, [1, 2, 2][:n], maxpool=True)
    halvings = sum(s == 2 and n > 0 for s, n in zip([1, 2, 2], layers, strict=False)) + 1  # + pool
    expected = (3, model.out_channels, 32 // 2**halvings, 16 // 2**halvings)
    assert model(torch.rand(3, 1, 32, 16)).shape == expected


def test_resnet9_refuses_what_it_cannot_build():
    with pytest.raises(ValueError, match="'Basic'.*BasicBlock.*Bottleneck"):
        ResNet9("Basic")
    with pytest.raises(ValueError, match=r"\[4, 8\], layers \[1\] and .* one entry per block"):
        ResNet9(channels=[4, 8], layers=[1], strides=[1, 2])


def test_plain_follows_its_grammar():
    model = Plain(["BC-2", "M", "FC-3-1", "BC-4"])
    assert list(model.state_dict()) == [f"feature.{i}.conv.weight" for i in (0, 3, 5)]
    first, focal, last = model.state_dict().values()
    shapes = [tuple(w.shape) for w in (first, focal, last)]
    assert shapes == [(2, 1, 5, 5), (3, 2, 3, 3), (4, 3, 3, 3)]
    x = torch.randn(2, 1, 8, 6)
    y = F.max_pool2d(F.leaky_relu(F.conv2d(x, first, padding=2)), 2)
    strips = [F.conv2d(y[:, :, rows], focal, padding=1) for rows in (slice(0, 2), slice(2, 4))]
    y = F.leaky_relu(torch.cat(strips, dim=2))
    torch.testing.assert_close(model(x), F.leaky_relu(F.conv2d(y, last, padding=1)))


def test_a_focal_convolution_refuses_a_height_that_does_not_split():
    with pytest.raises(ValueError, match="height 6 into 4"):
        FocalConv2d(1, 2, 3, halving=2)(torch.zeros(1, 1, 6, 5))


@pytest.mark.parametrize("word", ["BC", "BC-x", "FC-8", "C-8", "m", "BC-8-1", "BC-0", "BC-16385"])
def test_plain_refuses_other_words(word):
    with pytest.raises(ValueError, match=f"layers_cfg\\[1\\] is '{word}'"):
        Plain(["BC-4", word])
