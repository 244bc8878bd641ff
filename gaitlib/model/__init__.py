"""Gait networks and their losses, with OpenGait's names for arguments and checkpoint keys."""

from collections.abc import Mapping, Sequence
from typing import Any

from gaitlib.model import heads
from gaitlib.model.backbones import BACKBONES
from gaitlib.model.gaitbase import FRAME, GaitBase, GaitOutput, frame_size_of
from gaitlib.model.losses import CrossEntropyLoss, GaitLoss, TripletLoss, build_losses
from gaitlib.system.errors import UserError

__all__ = [
    "FRAME",
    "CrossEntropyLoss",
    "GaitBase",
    "GaitLoss",
    "GaitOutput",
    "TripletLoss",
    "build_losses",
    "build_model",
    "frame_size_of",
]


def build_model(
    backbone_cfg: Mapping[str, Any],
    SeparateFCs: Mapping[str, Any],  # noqa: N803
    SeparateBNNecks: Mapping[str, Any] | None,  # noqa: N803
    bin_num: Sequence[int],
    frame_size: Sequence[int] = FRAME,
) -> GaitBase:
    """Build a network from the entries of OpenGait's ``model_cfg``.

    Args:
        backbone_cfg: ``type`` (``ResNet9`` or ``Plain``) and that class's arguments.
        SeparateFCs: ``in_channels``, ``out_channels``, ``parts_num`` and optionally ``norm``.
        SeparateBNNecks: ``class_num``, ``in_channels``, ``parts_num`` and optionally ``norm`` and
            ``parallel_BN1d``; None builds a network that embeds but does not classify.
        bin_num: strips at each level of the pyramid.
        frame_size: rows and columns of its frames, see `GaitBase`.

    Raises:
        UserError: for an unknown backbone, or entries that do not fit each other.
        TypeError: for an argument the named class does not take.
    """
    arguments = dict(backbone_cfg)
    kind = arguments.pop("type", None)
    if kind not in BACKBONES:
        raise UserError(f"unknown backbone_cfg.type {kind!r}; choose from {sorted(BACKBONES)}")
    backbone = BACKBONES[kind](**arguments)
    fcs = heads.SeparateFCs(**SeparateFCs)
    if backbone.out_channels != fcs.fc_bin.shape[1]:
        raise UserError(
            f"the backbone gives {backbone.out_channels} channels, "
            f"SeparateFCs.in_channels is {fcs.fc_bin.shape[1]}"
        )
    bnnecks = None if SeparateBNNecks is None else heads.SeparateBNNecks(**SeparateBNNecks)
    return GaitBase(backbone, fcs, bnnecks, bin_num, tuple(frame_size))
