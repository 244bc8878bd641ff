"""Trace a network with only_train_once 3.0.1 and return plain values.

This is the only file that imports only_train_once (OTO, https://github.com/tianyic/only_train_once,
MIT). The package was written for an older torch and changes global state;
`gaitlib.prune.oto_compat.compat` handles both. The package does not know SeparateFCs. This file
registers them there, except for a trace ``as_shipped``.
"""

import contextlib
import copy
import functools
import importlib
import types
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from gaitlib.model.float_state import quantization_of
from gaitlib.prune.graph import Graph
from gaitlib.prune.hesso_settings import HessoSettings, Sparsity
from gaitlib.prune.oto_compat import UnsupportedTorchError, bare_imports, compat, quiet
from gaitlib.prune.oto_graph import read_graph
from gaitlib.system.errors import UserError

__all__ = ["UnsupportedTorchError", "dummy_batch", "package_hesso", "trace"]

EXAMPLE_SHAPE = (4, 30, 1, 64, 44)  # N, T, 1, H, W
EXAMPLE_SEED = 42


def dummy_batch(device: torch.device | str = "cpu", shape: Sequence[int] = EXAMPLE_SHAPE) -> Tensor:
    """Return the clips to trace a model with: float32 in 0..1, the same at each call."""
    generator = torch.Generator().manual_seed(EXAMPLE_SEED)
    return torch.rand(tuple(shape), generator=generator).to(device)


def trace(model: nn.Module, example: Tensor | None = None, *, as_shipped: bool = False) -> Graph:
    """Find the groups of channels of ``model`` that leave together.

    The trace runs on a copy in eval mode, on the model's device. The model, its training mode and
    the global random state do not change. For a quantized network the float network is traced; its
    channels are the same.

    Args:
        model: a network whose forward returns a tuple, as GaitBase does; not wrapped in
            DataParallel or the like.
        example: clips to run it on, ``(N, T, 1, H, W)``; `dummy_batch` of the
            model's frame size if None. Its values do not
            matter, and a smaller example traces faster.
        as_shipped: find what only_train_once 3.0.1 finds by itself, for comparison. It takes the
            matrices of SeparateFCs for bare parameters. The outputs of the last block, FCs and
            BNNecks then form one group, which reaches the output and keeps all its channels.

    Raises:
        UnsupportedTorchError: if only_train_once does not work with this torch.
        UserError: for a model with SyncBatchNorm, which the package cannot read. Convert batch
            norms after tracing; the graph finds its tensors by name.
    """
    synchronised = [n for n, m in model.named_modules() if isinstance(m, nn.SyncBatchNorm)]
    if synchronised:
        raise UserError(
            f"{synchronised[0]} is a SyncBatchNorm; trace the model first, then convert it"
        )
    device = next(model.parameters()).device
    if example is None:
        example = dummy_batch(device, (*EXAMPLE_SHAPE[:3], *model.frame_size))
    example = example.to(device)
    twin = copy.deepcopy(model).eval().requires_grad_(True)  # frozen layers have channels too
    twin.zero_grad(set_to_none=True)
    if (quantization := quantization_of(twin)) is not None:
        quantization.detach_from(twin)
    run = twin.forward

    def tensors_only(*inputs: Tensor) -> tuple[Tensor, ...]:  # a trace cannot return None
        outputs = run(*inputs)
        return tuple(
            o for o in ([outputs] if isinstance(outputs, Tensor) else outputs) if o is not None
        )

    twin.forward = tensors_only
    package = _package()
    with compat(), _as_shipped() if as_shipped else contextlib.nullcontext():
        found = package.OTO(twin, example)._graph
    del twin.forward
    return read_graph(found, model)


def package_hesso(graph: Graph, settings: HessoSettings) -> torch.optim.Optimizer:
    """Build only_train_once's own HESSO over the groups of ``graph``.

    It behaves as the package's, with two fixes: each parameter is in only one group, and it runs on
    the parameters' device instead of calling ``.cuda()``. It cannot resume, does not reach its
    sparsity exactly, and its Adam steps differ from torch's; `gaitlib.prune.hesso.HESSO` solves all
    three.

    Raises:
        UserError: as `check_package`.
    """
    check_package(settings)
    base = _package().optimizer.HESSO
    transforms = _package().transform.TensorTransform

    class OnDevice(base):
        def identify_redundant_groups(self) -> None:
            device = self.param_groups[0]["params"][0].device
            torch.Tensor.cuda = lambda tensor: tensor.to(device)  # shadows TensorBase.cuda
            try:
                super().identify_redundant_groups()
            finally:
                del torch.Tensor.cuda

        def group_sparsity(self) -> float:  # the name that the training loop logs
            return graph.group_sparsity()

        target_share = settings.target.share

    groups = graph.param_groups()
    for group in groups:
        group["p_transform"] = [transforms[name.upper()] for name in group["p_transform"]]
        group["auxiliary_ngs"] = []
    with quiet():
        return OnDevice(
            groups,
            variant=settings.variant,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            first_momentum=settings.first_momentum,
            second_momentum=settings.second_momentum,
            dampening=settings.dampening,
            target_group_sparsity=settings.target.share,
            start_pruning_step=settings.schedule.start,
            pruning_steps=settings.schedule.steps,
            pruning_periods=settings.schedule.periods,
            group_divisible=settings.group_divisible,
            importance_score_criteria=asdict(settings.scores),
        )


def check_package(settings: HessoSettings) -> None:
    """Refuse what only_train_once's own HESSO does not know: a budget, or channels that leave.

    Raises:
        UserError: with what to write instead.
    """
    if not isinstance(settings.target, Sparsity):
        raise UserError(
            f"only_train_once's own HESSO knows no {settings.target.key}: write implementation: "
            "gaitlib, or give target_group_sparsity"
        )
    if settings.shrinks:
        raise UserError(
            "shrink true: only_train_once's own HESSO keeps removed channels as zeros: write "
            "implementation: gaitlib, or leave shrink out"
        )


@functools.cache
def _package() -> types.ModuleType:
    """Import only_train_once once, and register SeparateFCs with it."""
    with compat(), bare_imports():
        package = importlib.import_module("only_train_once")
        operator = importlib.import_module("only_train_once.operation.operator")
        importlib.import_module("only_train_once.optimizer")
        importlib.import_module("only_train_once.transform")

    class SeparateFCsOTO(operator.Operator):
        """OpenGait's SeparateFCs: ``fc_bin`` (P, in, out) has outputs that are new channels."""

        def __init__(
            self,
            id: str | None = None,
            _type: str | None = None,
            cfg_params: dict | None = None,
            module: nn.Module | None = None,
        ) -> None:
            super().__init__(id, _type, cfg_params or {}, module)
            self.is_stem = True
            self.num_groups = module.fc_bin.shape[2]

        def prune_in_dim(
            self, pruned_idxes: Sequence[int] = (), param_names: Sequence[str] = ()
        ) -> None:
            kept = sorted(set(range(self.module.fc_bin.shape[1])) - {int(i) for i in pruned_idxes})
            self.module.fc_bin = self.prune_param_and_grad(self.module.fc_bin, kept, 1)

    operator.BASIC_MODULES["SeparateFCs"] = SeparateFCsOTO
    return package


@contextlib.contextmanager
def _as_shipped() -> Iterator[None]:
    """Unregister SeparateFCs inside the context."""
    operators = importlib.import_module("only_train_once.operation.operator").BASIC_MODULES
    registered = operators.pop("SeparateFCs")
    try:
        yield
    finally:
        operators["SeparateFCs"] = registered
