import pytest
import torch
import torch.nn.functional as F

from gaitlib.model.backbones import BasicBlock, Bottleneck, FocalConv2d, Plain, ResNet9


def weight_keys(model):
    return [key for key in model.state_dict() if "running" not in key and "num_batches" not in key]


def test_resnet9_has_the_checkpoint_keys_of_opengait():
    model = ResNet9("BasicBlock", [4, 8, 8, 8], [1, 1, 1, 1], [1, 2, 2, 1], maxpool=False)
    norm = ["weight", "bias"]
    block = [
        "conv1.weight",
        *(f"bn1.{k}" for k in norm),
        "conv2.weight",
        *(f"bn2.{k}" for k in norm),
    ]
    projection = ["downsample.0.weight", *(f"downsample.1.{k}" for k in norm)]
    expected = ["conv1.conv.weight", "bn1.weight", "bn1.bias"]
    for i in (1, 2, 3, 4):
        projects = i == 2 or i == 3  # a stride, here with or without more channels
        expected += [f"layer{i}.0.{k}" for k in block + (projection if projects else [])]
    assert weight_keys(model) == expected


def test_basic_block_is_two_convolutions_and_a_shortcut():
    block = BasicBlock(3, 6, stride=2)
    x = torch.randn(2, 3, 8, 6)
    y = F.relu(block.bn1(F.conv2d(x, block.conv1.weight, stride=2, padding=1)))
    y = block.bn2(F.conv2d(y, block.conv2.weight, padding=1))
    shortcut = block.downsample[1](F.conv2d(x, block.downsample[0].weight, stride=2))
    torch.testing.assert_close(block(x), F.relu(y + shortcut))


def test_bottleneck_is_four_times_as_wide_as_it_is_narrow():
    block = Bottleneck(3, 2, stride=2)
    x = torch.randn(2, 3, 8, 6)
    y = F.relu(block.bn1(F.conv2d(x, block.conv1.weight)))
    y = F.relu(block.bn2(F.conv2d(y, block.conv2.weight, stride=2, padding=1)))
    y = block.bn3(F.conv2d(y, block.conv3.weight))
    shortcut = block.downsample[1](F.conv2d(x, block.downsample[0].weight, stride=2))
    torch.testing.assert_close(block(x), F.relu(y + shortcut))
    assert block(x).shape == (2, 8, 4, 3)


@pytest.mark.parametrize("block", ["BasicBlock", "Bottleneck"])
@pytest.mark.parametrize("layers", [[1], [1, 2], [2, 0, 1]])
def test_resnet9_takes_any_number_of_stages(block, layers):
    model = ResNet9(block, [4, 8, 6][: len(layers)], layers, [1, 2, 2][: len(layers)], True)
    halvings = sum(s == 2 and n > 0 for s, n in zip([1, 2, 2], layers, strict=False)) + 1  # + pool
    expected = (3, model.out_channels, 32 // 2**halvings, 16 // 2**halvings)
    assert model(torch.rand(3, 1, 32, 16)).shape == expected


def test_resnet9_refuses_what_it_cannot_build():
    with pytest.raises(ValueError, match="'Basic'.*BasicBlock.*Bottleneck"):
        ResNet9("Basic")
    with pytest.raises(ValueError, match=r"\[4, 8\], \[1\] and"):
        ResNet9("BasicBlock", [4, 8], [1], [1, 2])


def test_plain_follows_its_grammar():
    model = Plain(["BC-2", "M", "FC-3-1", "BC-4"])
    assert list(model.state_dict()) == [f"feature.{i}.conv.weight" for i in (0, 3, 5)]
    first, focal, last = model.state_dict().values()
    assert [tuple(w.shape) for w in (first, focal, last)] == [
        (2, 1, 5, 5),
        (3, 2, 3, 3),
        (4, 3, 3, 3),
    ]
    x = torch.randn(2, 1, 8, 6)
    y = F.max_pool2d(F.leaky_relu(F.conv2d(x, first, padding=2)), 2)
    strips = [F.conv2d(y[:, :, rows], focal, padding=1) for rows in (slice(0, 2), slice(2, 4))]
    y = F.leaky_relu(torch.cat(strips, dim=2))
    torch.testing.assert_close(model(x), F.leaky_relu(F.conv2d(y, last, padding=1)))


def test_a_focal_convolution_keeps_strips_apart():
    conv = FocalConv2d(1, 2, 3, halving=2)
    x = torch.randn(1, 1, 8, 5)
    changed = x.clone()
    changed[:, :, 2:4] += 1  # the second of four strips
    differs = (conv(x) != conv(changed)).any(dim=(0, 1, 3))
    assert differs.tolist() == [False, False, True, True, False, False, False, False]
    with pytest.raises(ValueError, match="height 6 into 4"):
        conv(torch.zeros(1, 1, 6, 5))


@pytest.mark.parametrize("word", ["BC", "BC-x", "FC-8", "C-8", "m", "BC-8-1"])
def test_plain_refuses_other_words(word):
    with pytest.raises(ValueError, match=f"layers_cfg\\[1\\] is '{word}'"):
        Plain(["BC-4", word])
