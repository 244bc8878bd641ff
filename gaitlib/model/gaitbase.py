"""GaitBase: maps silhouettes to part embeddings, and in training also to subject logits.

The network of OpenGait (Fan et al., CVPR 2023, https://arxiv.org/abs/2211.06597): a backbone on
every frame, the maximum over frames, horizontal strips, one linear map and one BNNeck per strip.
With a Plain backbone and the bins 16, 8, 4, 2, 1 the same class is OpenGait's Baseline.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from gaitlib.model.heads import (
    HorizontalPoolingPyramid,
    SeparateBNNecks,
    SeparateFCs,
    SetBlockWrapper,
    TemporalPooling,
)
from gaitlib.system.errors import UserError

#: Begins the names of the backbone's layers.
BACKBONE = "Backbone.forward_block."
FRAME = (64, 44)  # rows and columns of a pretreated silhouette after the 10-column cut


class GaitOutput(NamedTuple):
    """The network's output for N clips.

    Fields:
        embeddings: ``(N, C, P)``, which distances are computed from (OpenGait's ``embed_1``).
        logits: ``(N, K, P)`` cosines to the training subjects; None without BNNecks.
    """

    embeddings: Tensor
    logits: Tensor | None


class GaitBase(nn.Module):
    """A gait network whose attribute names are OpenGait's checkpoint keys.

    Args:
        backbone: maps frames ``(N, 1, H, W)`` to feature maps ``(N, C', H', W')``; C' is its
            ``out_channels``.
        fcs: one linear map per part, from C' to C.
        bnnecks: one classifier per part; None gives embeddings without logits, for export.
        bins: strips at each level of the pyramid; P = ``sum(bins)``.
        frame_size: rows and columns of the frames that it is made for, in pixels: its costs are
            those on such frames, and so is the input of its ONNX file. Its weights do not depend
            on them.

    Every layer is initialised from torch's global generator as in OpenGait: xavier uniform
    convolutions, batch-norm weights from N(1, 0.02) and biases 0.

    Raises:
        UserError: if the numbers of parts or channels of heads and bins do not fit.
    """

    def __init__(
        self,
        backbone: nn.Module,
        fcs: SeparateFCs,
        bnnecks: SeparateBNNecks | None,
        bins: Sequence[int],
        frame_size: tuple[int, int] = FRAME,
    ) -> None:
        super().__init__()
        self.frame_size = tuple(frame_size)
        if not hasattr(backbone, "out_channels"):
            raise UserError(
                f"a {type(backbone).__name__} has no out_channels: set it to the number of its "
                "output's channels"
            )
        parts, c_in, width = fcs.fc_bin.shape
        _require("SeparateFCs.parts_num", parts, sum(bins), f"bin_num {list(bins)} sums to")
        _require("SeparateFCs.in_channels", c_in, backbone.out_channels, "the backbone ends in")
        if bnnecks is not None:
            necks_parts, necks_in, _ = bnnecks.fc_bin.shape
            _require("SeparateBNNecks.parts_num", necks_parts, parts, "the parts are")
            _require("SeparateBNNecks.in_channels", necks_in, width, "SeparateFCs returns")
        self.Backbone = SetBlockWrapper(backbone)
        self.TP = TemporalPooling()
        self.HPP = HorizontalPoolingPyramid(bins)
        self.FCs = fcs
        self.BNNecks = bnnecks
        self.apply(_initialise)

    def embed(self, sils: Tensor, seqL: Tensor | Sequence[int] | None = None) -> Tensor:  # noqa: N803
        """Return only the embeddings, ``(N, C, P)``; inputs as in `forward`."""
        maps = self.Backbone(_channel_first(sils))  # (N, C', T, H', W')
        if maps.dim() != 5 or maps.size(1) != self.FCs.fc_bin.size(1):
            raise UserError(
                f"the backbone returns {(*maps.shape[1:2], *maps.shape[3:])} for each frame, and "
                f"SeparateFCs.in_channels is {self.FCs.fc_bin.size(1)}: it has to return "
                "(out_channels, H, W), with the number that it says"
            )
        return self.FCs(self.HPP(self.TP(maps, seqL)))

    def forward(self, sils: Tensor, seqL: Tensor | Sequence[int] | None = None) -> GaitOutput:  # noqa: N803
        """Embed and classify clips.

        Args:
            sils: float silhouettes in 0..1, ``(N, T, H, W)``, ``(N, 1, T, H, W)`` or
                ``(N, T, 1, H, W)``; with ``seqL``, N is 1 and clips are joined along T.
            seqL: number of frames of each joined clip; the output then has one row per clip.

        Raises:
            UserError: for other shapes, a height that does not split into the bins, or a backbone
                that returns other channels than it says.
        """
        embeddings = self.embed(sils, seqL)
        logits = None if self.BNNecks is None else self.BNNecks(embeddings)[1]
        return GaitOutput(embeddings, logits)


def _require(key: str, size: int, needed: int, because: str) -> None:
    if size != needed:
        raise UserError(f"{key} is {size}, but {because} {needed}: write {needed}")


def _channel_first(sils: Tensor) -> Tensor:
    """Reshape silhouettes to ``(N, 1, T, H, W)``."""
    if sils.dim() == 4:
        return sils.unsqueeze(1)
    if sils.dim() == 5 and sils.size(1) == 1:
        return sils
    if sils.dim() == 5 and sils.size(2) == 1:
        return sils.transpose(1, 2)
    raise UserError(
        "silhouettes have to be (N, T, H, W), (N, 1, T, H, W) or (N, T, 1, H, W), not "
        f"{tuple(sils.shape)}"
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
