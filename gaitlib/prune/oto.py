"""Trace a network with only_train_once 3.0.1 and return plain values.

This is the only file that imports only_train_once (OTO, https://github.com/tianyic/only_train_once,
MIT). The package was written for an older torch and changes global state;
`gaitlib.prune.oto_compat.compat` handles both. The package does not know SeparateFCs. This file
registers them there, except for a trace ``as_shipped``.
"""

import contextlib
import copy
import functools
import logging
import re
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from gaitlib.model.examples import Example, example_like, run_example, run_given, varied
from gaitlib.model.float_state import quantization_of
from gaitlib.prune.dry_cut import refuse_wrong_cuts
from gaitlib.prune.graph import Graph
from gaitlib.prune.hesso_settings import HessoSettings, Sparsity
from gaitlib.prune.oto_compat import bare_imports, compat, quiet
from gaitlib.prune.oto_graph import UNUSED, read_graph
from gaitlib.system.errors import UserError

log = logging.getLogger(__name__)

EXAMPLE_SHAPE = (2, 2, 1, 64, 44)  # N, T, 1, H, W


def dummy_batch(shape: Sequence[int] = EXAMPLE_SHAPE) -> Tensor:
    """Return the clips to trace a model with: float32 in 0..1, the same at each call."""
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(42))


def trace(
    model: nn.Module,
    example: Example | None = None,
    *,
    check: bool = True,
    as_shipped: bool = False,
) -> Graph:
    """Find the groups of channels of ``model`` that leave together.

    The trace runs on a copy in eval mode, on the model's device. The model, its training mode and
    the global random state do not change. For a quantized network the float network is traced; its
    channels are the same.

    Args:
        model: any network; not wrapped in DataParallel or the like.
        example: inputs to run it on: a tensor, a tuple of arguments, or a dict of named ones. If
            None, `dummy_batch` of the model's frame size. Its values do not matter, and a smaller
            example traces faster.
        check: cut each group on trial (`gaitlib.prune.dry_cut`), and keep those whose cut changes
            the output. Without it a wrong cut shows only in `Graph.cut`.
        as_shipped: find what only_train_once 3.0.1 finds by itself, for comparison. It takes the
            matrices of SeparateFCs for bare parameters. The outputs of the last block, FCs and
            BNNecks then form one group, which reaches the output and keeps all its channels.

    Raises:
        UserError: if only_train_once does not work with this torch, or cannot trace the model; if
            the model does not run on the example; for what is no network, or a compiled one; and
            for a model with SyncBatchNorm, which the package cannot read. Convert batch norms, and
            compile, after tracing; the graph finds its tensors by name.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"{model!r:.100} is no network: pass an instance of a torch.nn.Module")
    if hasattr(model, "_orig_mod"):
        raise UserError("this network is compiled: trace it first, then compile it")
    synchronised = [n for n, m in model.named_modules() if isinstance(m, nn.SyncBatchNorm)]
    if synchronised:
        raise UserError(
            f"{synchronised[0]} is a SyncBatchNorm; trace the model first, then convert it"
        )
    packed = [n for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    if packed:
        raise UserError(
            f"{packed[0]} is a MultiheadAttention, whose packed weights only_train_once cannot "
            "trace: write it with a Linear each for queries, keys and values, or trace a part of "
            "the network that lacks it"
        )
    if not any(parameter.is_floating_point() for parameter in model.parameters()):
        raise UserError(f"this {type(model).__name__} has no parameters: there is nothing to prune")
    if example is None:
        if not hasattr(model, "frame_size"):
            raise UserError(
                f"a {type(model).__name__} says nothing of its inputs: pass an example of them"
            )
        example = dummy_batch((*EXAMPLE_SHAPE[:3], *model.frame_size))
    example = copy.deepcopy(varied(example_like(example, next(model.parameters()))))
    try:
        twin = copy.deepcopy(model).eval().requires_grad_(True)  # frozen layers have channels too
    except RuntimeError as error:
        raise UserError(f"this {type(model).__name__} cannot be copied: {error}") from error
    twin.zero_grad(set_to_none=True)
    if (quantization := quantization_of(twin)) is not None:
        quantization.detach_from(twin)
    with torch.no_grad():
        if not run_given(twin, copy.deepcopy(example), "the example"):
            raise UserError(f"this {type(model).__name__} returns no tensor: there is no output")
    found = _package_graph(twin, copy.deepcopy(example), as_shipped)
    graph = read_graph(found, model, example)
    if unused := [name for g in graph.groups if g.reason == UNUSED for name in g.names]:
        log.warning(
            "the traced forward pass does not use %s. Channels that a training pass on the example "
            "needs are kept; others that these read may be cut: let evaluation use them too, with "
            "an example that reaches them, or freeze what they read, requires_grad_(False)",
            ", ".join(unused),
        )
    return refuse_wrong_cuts(graph) if check and not as_shipped else graph


def _package_graph(twin: nn.Module, example: Example, as_shipped: bool) -> Any:
    """Return the package's graph of a network, which changes.

    Raises:
        UserError: if the package, or torch's tracer beneath it, cannot trace the network.
    """
    tensors, form = tree_flatten(example)
    package, run = _package(), twin.forward
    operators = package.operation.operator.BASIC_MODULES
    # the tracer needs tensors that go in and come out, whatever holds them
    twin.forward = lambda *given: tuple(run_example(run, tree_unflatten(given, form)))
    with compat(), contextlib.ExitStack() as undo:
        if as_shipped:
            undo.callback(operators.update, SeparateFCs=operators.pop("SeparateFCs"))
        else:
            undo.enter_context(_any_network(package, twin))
        try:
            return package.OTO(twin, tuple(tensors))._graph
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"only_train_once cannot trace {_operation_of(error, twin, tuple(tensors))}: write "
                "it with other operations, or trace a part of the network that lacks it"
            ) from error


@contextlib.contextmanager
def _any_network(package: types.ModuleType, twin: nn.Module) -> Iterator[None]:
    """Let the package trace layers that it does not know, or knows wrongly; then undo that."""
    operator, joining = package.operation.operator, package.dependency_graph.pruning_dependency
    known, composed = dict(operator.BASIC_MODULES), dict(operator.COMPOSED_MODULES)
    merge, fast = joining.merge_depth_conv_node_groups, torch.backends.mha.get_fastpath_enabled()

    class Stem(operator.Operator):
        """A layer whose outputs are new channels."""

        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.is_stem = True

    operator.BASIC_MODULES.pop("GroupNorm")  # reads its own parameters by names that it lacks
    operator.COMPOSED_MODULES.clear()  # which it knows by the names of classes alone
    for layer in twin.modules():
        if isinstance(layer, nn.Linear | _ConvNd):
            operator.BASIC_MODULES.setdefault(type(layer).__name__, Stem)
    joining.merge_depth_conv_node_groups = lambda graph: None  # may merge with the wrong one
    torch.backends.mha.set_fastpath_enabled(False)  # one operation that has no form in ONNX
    seen: set[Tensor] = set()
    for name, parameter in list(twin.named_parameters(remove_duplicate=False)):
        if parameter in seen:  # the package counts each of the tracer's inputs once
            owner, _, last = name.rpartition(".")
            del twin.get_submodule(owner)._parameters[last]
            twin.get_submodule(owner).__dict__[last] = parameter
        seen.add(parameter)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        joining.merge_depth_conv_node_groups = merge
        for table, before in (
            (operator.BASIC_MODULES, known),
            (operator.COMPOSED_MODULES, composed),
        ):
            table.clear()
            table.update(before)


def _operation_of(error: Exception, traced: nn.Module, tensors: tuple[Tensor, ...]) -> str:
    """Return the operation that an error of the tracer names, and the module that runs it."""
    if named := re.search(r"(?:aten::|operator )(\w+)", str(error)):
        scopes = {module: name or "the network" for name, module in traced.named_modules()}
        torch.jit._trace._trace_module_map = scopes  # the tracer then notes whose a node is
        try:
            traced_graph, _ = torch.jit._get_trace_graph(traced, tensors)
        finally:
            torch.jit._trace._trace_module_map = None
        for node in traced_graph.nodes():
            if node.kind() == f"aten::{named[1]}":
                return f"{named[1]} in {node.scopeName().rpartition('/')[2] or 'the network'}"
    said = (str(error).splitlines() or [""])[0]
    return f"this {type(traced).__name__} ({type(error).__name__}: {said})"


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
    package, groups = _package(), graph.param_groups()
    kinds = package.transform.TensorTransform
    for group in groups:
        group["p_transform"] = [kinds.TRANSPOSE if dim else kinds.BASIC for dim in group["p_dims"]]
        group |= {"is_auxiliary": False, "auxiliary_ngs": []}
    device = groups[0]["params"][0].device

    class ToDevice(TorchFunctionMode):
        """Calls ``.to(device)`` for ``.cuda()``, which the package writes inside its choice."""

        def __torch_function__(
            self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.Tensor.cuda:
                return args[0].to(device)
            return func(*args, **(kwargs or {}))

    class OnDevice(package.optimizer.HESSO):
        def identify_redundant_groups(self) -> None:
            with ToDevice():
                super().identify_redundant_groups()

        def group_sparsity(self) -> float:  # the name that the training loop logs
            return graph.group_sparsity()

        target_share = settings.target.share

    names = ("variant", "lr", "weight_decay", "first_momentum", "second_momentum", "dampening")
    shared = {name: getattr(settings, name) for name in (*names, "group_divisible")}
    with quiet():
        return OnDevice(
            groups,
            target_group_sparsity=settings.target.share,
            start_pruning_step=settings.schedule.start,
            pruning_steps=settings.schedule.steps,
            pruning_periods=settings.schedule.periods,
            importance_score_criteria=asdict(settings.scores),
            **shared,
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
        import only_train_once.optimizer
        import only_train_once.transform
        from only_train_once.operation import operator

    class SeparateFCsOTO(operator.Operator):
        """OpenGait's SeparateFCs: ``fc_bin`` (P, in, out) has outputs that are new channels."""

        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.is_stem = True
            self.num_groups = self.module.fc_bin.shape[2]

    operator.BASIC_MODULES["SeparateFCs"] = SeparateFCsOTO
    return only_train_once
