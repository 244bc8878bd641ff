"""Small networks of many kinds, each with an example of its inputs, that tracing has to cope with.

`NETWORKS` maps a kind to a function that builds the network and its example. A kind stands for what
makes it hard: how channels meet (sums, concatenations, products), how they are stored (transposed,
grouped, shared weights), what is between two layers (flatten, norms, gates, indices), and what goes
in and comes out.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {}

IMAGE, SOUND, CLIP, WORDS = (2, 3, 16, 16), (2, 4, 32), (2, 1, 6, 16, 16), (2, 5, 12)


def network(kind: str, *shapes: tuple[int, ...]) -> Callable[[Any], Any]:
    """Register a builder of modules; the example is one tensor, or a tuple of several."""

    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def both() -> tuple[nn.Module, Any]:
            tensors = tuple(torch.rand(shape) for shape in shapes or (IMAGE,))
            return build(), tensors if len(tensors) > 1 else tensors[0]

        NETWORKS[kind] = both
        return build

    return register


def conv(c_in: int, c_out: int, size: int = 3, **keys: Any) -> nn.Sequential:
    """Return a convolution that keeps the map's size, its batch norm and a ReLU."""
    layer = nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False, **keys)
    return nn.Sequential(layer, nn.BatchNorm2d(c_out), nn.ReLU())


def classify(width: int, classes: int = 5) -> nn.Sequential:
    """Return pooling over the map and a linear classifier."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class Residual(nn.Module):
    """The sum of its input and of layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Gate(nn.Module):
    """Squeeze and excitation: each channel times a number that all of them decide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(weights)


class Concat(nn.Module):
    """The outputs of branches, side by side; ``keep`` puts the input first."""

    def __init__(self, *branches: nn.Module, keep: bool = False) -> None:
        super().__init__()
        self.branches, self.keep = nn.ModuleList(branches), keep

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self.keep + [branch(x) for branch in self.branches], 1)


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


# chains ------------------------------------------------------------------------------------------


@network("convolutions with batch norms")
def chain():
    return nn.Sequential(conv(3, 8), conv(8, 12), classify(12))


@network("convolutions with biases, without norms")
def biases():
    body = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU()]
    return nn.Sequential(*body, classify(12))


@network("leaky and parametric activations")
def activations():
    body = [nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 8, 3), nn.LeakyReLU(), nn.Conv2d(8, 8, 3)]
    return nn.Sequential(*body, nn.PReLU(), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.GELU(), classify(8))


@network("perceptron", (4, 10))
def perceptron():
    layers = [nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 5)]
    return nn.Sequential(*layers)


@network("perceptron on tokens", WORDS)
def tokens():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 7))


@network("flatten to a linear layer")
def flatten():
    body = [conv(3, 8), nn.MaxPool2d(4), conv(8, 6), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(6 * 4, 16), nn.ReLU(), nn.Linear(16, 5))


@network("flatten by view")
def view():
    class View(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(conv(3, 8), nn.AvgPool2d(8)), nn.Linear(32, 5)

        def forward(self, x):
            x = self.body(x)
            return self.head(x.view(x.size(0), -1))

    return View()


@network("convolutions over time", SOUND)
def sound():
    body = [nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(8, 5))


@network("convolutions over space and time", CLIP)
def clips():
    body = [nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 8, 3)]
    return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5))


@network("frames as a batch", (2, 1, 6, 16, 16))
def frames():
    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(conv(1, 8), conv(8, 12)), nn.Linear(12, 5)

        def forward(self, x):
            n, c, t, h, w = x.shape
            maps = self.body(x.transpose(1, 2).reshape(n * t, c, h, w))
            maps = maps.reshape(n, t, *maps.shape[1:]).transpose(1, 2).amax(2)
            return self.head(maps.mean((2, 3)))

    return Frames()


@network("upsampled by transposed convolutions")
def autoencoder():
    down = [conv(3, 8, stride=2), conv(8, 12, stride=2)]
    up = [nn.ConvTranspose2d(12, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*down, *up, nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU(), nn.Conv2d(6, 3, 1))


@network("interpolation")
def interpolation():
    resize = Apply(lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"))
    return nn.Sequential(conv(3, 8, stride=2), resize, conv(8, 8), nn.Conv2d(8, 3, 1))


# norms -------------------------------------------------------------------------------------------


@network("instance norms with weights")
def instance_norms():
    norm = nn.InstanceNorm2d
    body = [nn.Conv2d(3, 8, 3), norm(8, affine=True), nn.ReLU(), nn.Conv2d(8, 8, 3), norm(8)]
    return nn.Sequential(*body, nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), classify(8))


@network("group norm, then batch norms")
def group_norms():
    body = [nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU()]
    return nn.Sequential(*body, conv(8, 12), conv(12, 8), classify(8))


@network("group norm of single channels")
def single_groups():
    body = [nn.Conv2d(3, 8, 3), nn.GroupNorm(8, 8), nn.ReLU(), conv(8, 8)]
    return nn.Sequential(*body, classify(8))


@network("layer norm over channels", WORDS)
def layer_norm():
    layers = [nn.Linear(12, 16), nn.LayerNorm(16), nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)]
    return nn.Sequential(*layers, nn.LayerNorm(16), nn.Linear(16, 5))


@network("layer norm over maps")
def layer_norm_of_maps():
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.LayerNorm([16, 16]), nn.ReLU(), conv(8, 8)]
    return nn.Sequential(*body, classify(8))


@network("batch norms without weights")
def plain_norms():
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU(), conv(8, 8)]
    return nn.Sequential(*body, classify(8))


# sums and products -------------------------------------------------------------------------------


@network("residual blocks")
def residual():
    blocks = [Residual(conv(8, 6), conv(6, 8)) for _ in range(2)]
    return nn.Sequential(conv(3, 8), *blocks, classify(8))


@network("residual with a projection")
def projection():
    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.side = nn.Sequential(conv(8, 6), conv(6, 12)), nn.Conv2d(8, 12, 1)

        def forward(self, x):
            return F.relu(self.main(x) + self.side(x))

    return nn.Sequential(conv(3, 8), Projected(), classify(12))


@network("squeeze and excitation")
def excitation():
    return nn.Sequential(conv(3, 8), Gate(8), conv(8, 8), classify(8))


@network("a sigmoid between two layers")
def sigmoid():
    return nn.Sequential(conv(3, 8), nn.Conv2d(8, 8, 3), nn.Sigmoid(), conv(8, 8), classify(8))


@network("one weight for each channel")
def scale():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma = nn.Parameter(torch.rand(8, 1, 1))

        def forward(self, x):
            return x * self.gamma

    return nn.Sequential(conv(3, 8), Scale(), conv(8, 8), classify(8))


@network("a learned constant is added", WORDS)
def position():
    class Position(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.position = nn.Linear(12, 16), nn.Parameter(torch.rand(1, 5, 16))
            self.rest = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5))

        def forward(self, x):
            return self.rest(self.first(x) + self.position)

    return Position()


@network("sum of maps of two sizes")
def pyramid():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.fine, self.coarse = conv(3, 8), conv(8, 12, stride=2)
            self.lateral, self.top = nn.Conv2d(8, 10, 1), nn.Conv2d(12, 10, 1)
            self.head = nn.Sequential(conv(10, 8), classify(8))

        def forward(self, x):
            fine = self.fine(x)
            top = F.interpolate(self.top(self.coarse(fine)), scale_factor=2.0, mode="nearest")
            return self.head(self.lateral(fine) + top)

    return Pyramid()


# concatenations ----------------------------------------------------------------------------------


@network("branches side by side")
def inception():
    return nn.Sequential(conv(3, 8), Concat(conv(8, 6, 1), conv(8, 4)), conv(10, 8), classify(8))


@network("dense block")
def dense():
    layers, width = [], 6
    for _ in range(3):
        new = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 3, padding=1))
        layers.append(Concat(new, keep=True))
        width += 4
    end = [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 8, 1), nn.ReLU()]
    return nn.Sequential(conv(3, 6), *layers, *end, classify(8))


@network("fire modules")
def fire():
    def module(c_in):
        return nn.Sequential(conv(c_in, 4, 1), Concat(conv(4, 6, 1), conv(4, 6)))

    return nn.Sequential(conv(3, 8), module(8), module(12), nn.Conv2d(12, 5, 1), nn.Flatten(2))


@network("skips of a U-net")
def unet():
    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.deep = conv(3, 6), conv(6, 8, stride=2)
            self.up, self.out = nn.ConvTranspose2d(8, 4, 2, 2), conv(10, 8)
            self.last = nn.Conv2d(8, 2, 1)

        def forward(self, x):
            skip = self.down(x)
            return self.last(self.out(torch.cat((self.up(self.deep(skip)), skip), 1)))

    return UNet()


@network("the input joins a concatenation")
def input_joins():
    return nn.Sequential(Concat(conv(3, 6), keep=True), conv(9, 8), classify(8))


@network("a concatenation of concatenations")
def nested():
    inner = Concat(conv(8, 4, 1), conv(8, 6))
    return nn.Sequential(conv(3, 8), Concat(inner, conv(8, 4)), conv(14, 8), classify(8))


@network("one tensor twice in a concatenation")
def twice():
    return nn.Sequential(
        conv(3, 8), Apply(lambda x: torch.cat((x, x), 1)), conv(16, 8), classify(8)
    )


@network("a sum after a concatenation")
def sum_of_join():
    branches = Concat(conv(8, 4, 1), conv(8, 4))
    return nn.Sequential(conv(3, 8), Residual(branches), conv(8, 8), classify(8))


@network("a concatenation of flattened maps")
def joined_heads():
    pooled = [nn.Sequential(conv(8, c), nn.AvgPool2d(8), nn.Flatten()) for c in (4, 6)]
    return nn.Sequential(conv(3, 8), Concat(*pooled), nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 5))


@network("pooled at several sizes")
def spatial_pyramid():
    pools = [nn.MaxPool2d(size, 1, size // 2) for size in (3, 5)]
    return nn.Sequential(conv(3, 8), Concat(*pools, keep=True), conv(24, 8), classify(8))


# groups, splits, shared weights ------------------------------------------------------------------


@network("a transposed depthwise layer")
def transposed_depthwise():
    body = [conv(3, 8), nn.ConvTranspose2d(8, 8, 2, 2, groups=8), nn.ReLU(), conv(8, 8)]
    return nn.Sequential(*body, classify(8))


@network("depthwise separable")
def mobile():
    def block(c_in, c_out):
        return [conv(c_in, c_in, groups=c_in), conv(c_in, c_out, 1)]

    return nn.Sequential(conv(3, 8), *block(8, 12), *block(12, 8), classify(8))


@network("inverted residuals")
def inverted():
    def block(width):
        wide = 2 * width
        return Residual(conv(width, wide, 1), conv(wide, wide, groups=wide), conv(wide, width, 1))

    return nn.Sequential(conv(3, 8), block(8), block(8), classify(8))


@network("a gate behind a depthwise layer")
def gated():
    block = Residual(conv(8, 16, 1), conv(16, 16, groups=16), Gate(16), conv(16, 8, 1))
    return nn.Sequential(conv(3, 8), block, classify(8))


@network("a depthwise layer after a concatenation")
def depthwise_join():
    body = [conv(3, 8), Concat(conv(8, 4), conv(8, 6)), conv(10, 10, groups=10), conv(10, 8, 1)]
    return nn.Sequential(*body, classify(8))


@network("grouped convolutions")
def grouped():
    return nn.Sequential(conv(3, 8), conv(8, 8, groups=2), conv(8, 12, 1), conv(12, 8), classify(8))


@network("channel shuffle")
def shuffle():
    mix = Apply(lambda x: x.reshape(len(x), 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape))
    return nn.Sequential(conv(3, 8), mix, conv(8, 8), conv(8, 6), classify(6))


@network("split into two halves")
def split():
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.branch, self.last = conv(3, 8), conv(4, 4), conv(12, 8)
            self.head = classify(8)

        def forward(self, x):
            left, right = self.first(x).chunk(2, 1)
            return self.head(self.last(torch.cat((left, right, self.branch(right)), 1)))

    return Split()


@network("a fixed channel")
def index():
    class Index(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.middle = conv(3, 8), conv(8, 8)
            self.head = nn.Sequential(conv(8, 6), classify(6))

        def forward(self, x):
            maps = self.body(x)
            return self.head(self.middle(maps)) * maps[:, 2:3].mean((2, 3))

    return Index()


@network("one layer twice")
def shared():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again, self.last = conv(3, 8), conv(8, 8), conv(8, 6)
            self.head = classify(6)

        def forward(self, x):
            return self.head(self.last(self.again(self.again(self.first(x)))))

    return Shared()


@network("tied weights", (4, 10))
def tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.middle = nn.Linear(10, 12), nn.Linear(12, 12)

        def forward(self, x):
            hidden = F.relu(self.middle(F.relu(self.first(x))))
            return F.linear(hidden, self.first.weight.T)

    return Tied()


# attention ---------------------------------------------------------------------------------------


@network("attention between convolutions")
def attention():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = conv(3, 8), nn.Sequential(conv(8, 6), classify(6))
            self.query, self.key, self.value = (nn.Conv2d(8, 8, 1) for _ in range(3))

        def forward(self, x):
            x = self.first(x)
            q, k, v = (f(x).flatten(2) for f in (self.query, self.key, self.value))
            scores = torch.softmax(q.transpose(1, 2) @ k, -1)
            return self.last(x + (v @ scores.transpose(1, 2)).reshape(x.shape))

    return Attention()


@network("transformer", WORDS)
def transformer():
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), layer, nn.Linear(16, 5))


@network("attention by torch's own function", WORDS)
def dot_product():
    class DotProduct(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rest = nn.Linear(12, 16), nn.Linear(16, 5)
            self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))

        def forward(self, x):
            x = torch.relu(self.first(x))
            q, k, v = self.query(x), self.key(x), self.value(x)
            return self.rest(F.scaled_dot_product_attention(q, k, v).mean(1))

    return DotProduct()


@network("recurrent", WORDS)
def recurrent():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.cells = nn.Linear(12, 16), nn.GRU(16, 10, batch_first=True)
            self.last = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 5))

        def forward(self, x):
            return self.last(self.cells(torch.relu(self.first(x)))[0][:, -1])

    return Recurrent()


# inputs and outputs ------------------------------------------------------------------------------


@network("two inputs", IMAGE, (2, 7))
def two_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.image = nn.Sequential(conv(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.words, self.head = nn.Linear(7, 6), nn.Linear(14, 5)

        def forward(self, image, words):
            return self.head(torch.cat((self.image(image), F.relu(self.words(words))), 1))

    return Two()


@network("inputs by name")
def named_inputs():
    return two_inputs()


NETWORKS["inputs by name"] = lambda: (
    two_inputs(),
    {"words": torch.rand(2, 7), "image": torch.rand(IMAGE)},
)


@network("several outputs")
def several_outputs():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.more = conv(3, 8), conv(8, 8)
            self.mask, self.label = nn.Conv2d(8, 2, 1), classify(8)

        def forward(self, x):
            maps = self.more(self.body(x))
            return {"mask": self.mask(maps), "labels": [self.label(maps), None]}

    return Several()


@network("classes of tokens", WORDS)
def classes_of_tokens():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 6)

        def forward(self, x):
            return self.last(torch.relu(self.first(x))).log_softmax(-1)

    return Last()


@network("a feature map comes out")
def maps_out():
    return nn.Sequential(conv(3, 8), conv(8, 8), conv(8, 6))


@network("strips of a gait network")
def strips():
    class Strips(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.weight = nn.Sequential(conv(3, 8), conv(8, 8)), nn.Linear(8, 5)

        def forward(self, x):
            maps = self.body(x)
            parts = maps.reshape(*maps.shape[:2], 4, -1)
            return self.weight((parts.mean(-1) + parts.amax(-1)).transpose(1, 2))

    return Strips()
