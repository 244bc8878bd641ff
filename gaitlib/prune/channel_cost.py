"""What a network costs at given widths, so that a choice of channels can be held to a budget.

MACs and parameters are sums of products: a layer costs a factor times the widths of the groups that
its dimensions shrink with. So what a channel saves depends on the widths of the moment.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from gaitlib.model import GaitBase
from gaitlib.model.float_state import of_quantizer
from gaitlib.model.network_cost import budget_macs
from gaitlib.model.widths import sides_of
from gaitlib.prune.channel_groups import Segment
from gaitlib.prune.graph import Graph

Widths = Mapping[str, int]


@dataclass(frozen=True)
class Product:
    """A layer that costs ``factor`` times the product of its widths."""

    factor: float

    def __call__(self, *widths: int) -> float:
        """Return the cost at these widths."""
        return self.factor * prod(widths)


@dataclass(frozen=True)
class Term:
    """One layer's part of a cost.

    Attributes:
        layer: name of the module, or of the parameter.
        dims: the segments of each dimension that shrinks.
        cost: maps the sizes of these dimensions, in this order, to the layer's cost.
    """

    layer: str
    dims: tuple[tuple[Segment, ...], ...]
    cost: Callable[..., float]

    @property
    def groups(self) -> set[str]:
        """Ids of the groups whose widths it depends on; empty for what is no group's."""
        return {segment.group for dim in self.dims for segment in dim}

    def at(self, widths: Widths) -> float:
        """Return the layer's cost at ``widths``, channels by group id; others are whole."""
        return self.cost(
            *(sum(widths.get(s.group, s.channels) * s.block for s in dim) for dim in self.dims)
        )


class ChannelCost:
    """The cost of a network as a function of its groups' widths.

    Args:
        unit: what it counts, for messages: ``MACs per frame``.
        full: the widths of the whole network, by group id.
        terms: the layers that shrink.
        fixed: the cost of everything that does not shrink.
        table: the measurements that the terms come from, as text; empty if the network decides.
        from_table: returns the cost by another such table; needed with ``table``.
    """

    def __init__(
        self,
        unit: str,
        full: Widths,
        terms: Sequence[Term],
        fixed: float = 0.0,
        table: str = "",
        from_table: "Callable[[str], ChannelCost] | None" = None,
    ) -> None:
        self.unit, self.full, self.terms, self.fixed = unit, dict(full), tuple(terms), fixed
        self.table, self.from_table = table, from_table
        self._of_group = {g: [t for t in self.terms if g in t.groups] for g in self.full}

    def total(self, widths: Widths) -> float:
        """Return the cost of the whole network at ``widths``."""
        return self.fixed + sum(term.at(widths) for term in self.terms)

    def saving(self, widths: Widths, group: str, channels: int) -> float:
        """Return what the network at ``widths`` saves by losing ``channels`` more of ``group``."""
        narrower = {**widths, group: widths[group] - channels}
        return sum(term.at(widths) - term.at(narrower) for term in self._of_group[group])

    def most_expensive(self, widths: Widths) -> tuple[str, float]:
        """Return the layer that costs most at ``widths``, or all that does not shrink; its cost."""
        costs = {term.layer: term.at(widths) for term in self.terms}
        kept = "what is kept whole (graph.table() says why)"
        return max(((kept, self.fixed), *costs.items()), key=lambda c: c[1])


def product_cost(
    unit: str,
    full: Widths,
    counts: Mapping[str, int],
    dims: Mapping[str, Sequence[tuple[Segment, ...]]],
) -> ChannelCost:
    """Return a cost whose layers are each in proportion to the widths that they shrink with.

    Args:
        unit: as in `ChannelCost`.
        full: as in `ChannelCost`.
        counts: the cost of each layer of the whole network, by name.
        dims: the dimensions that a layer shrinks in; a layer that is missing keeps its size.
    """
    terms = []
    for layer, count in counts.items():
        if shrinks := tuple(dims.get(layer, ())):
            whole = Term(layer, shrinks, Product(1)).at(full)
            terms.append(Term(layer, shrinks, Product(count / whole)))
    fixed = sum(counts.values()) - sum(term.at(full) for term in terms)
    return ChannelCost(unit, full, terms, fixed)


def macs_cost(graph: Graph) -> ChannelCost:
    """Return the MACs of a network, as `network_cost.budget_macs` counts them."""
    dims = {}
    for name, shrinks in graph.shrinking_dims().items():
        layer, _, last = name.rpartition(".")
        if last == sides_of(graph.model.get_submodule(layer))[0]:
            dims[layer] = tuple(shrinks.values())
    unit = "MACs per frame" if isinstance(graph.model, GaitBase) else "MACs of the example"
    counts = budget_macs(graph.model, graph.example)
    return product_cost(unit, widths_of(graph), counts, dims)


def params_cost(graph: Graph) -> ChannelCost:
    """Return the number of parameters, as `network_cost.count_parameters` counts them."""
    counts = {n: p.numel() for n, p in graph.model.named_parameters() if not of_quantizer(n)}
    dims = {name: tuple(shrinks.values()) for name, shrinks in graph.shrinking_dims().items()}
    return product_cost("parameters", widths_of(graph), counts, dims)


def widths_of(graph: Graph) -> dict[str, int]:
    """Return the channels of each prunable group of the whole network, by group id."""
    return {group.id: group.channels for group in graph.prunable()}
