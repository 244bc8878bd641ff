"""Draw the dependency graph of a network as a column of layers, with arcs for skips."""

from __future__ import annotations

from collections.abc import Collection, Hashable

import matplotlib.pyplot as plt
import networkx as nx
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path

from gaitlib.model import BACKBONE
from gaitlib.system.errors import UserError
from workbook.plots.style import PALE_GREY, STYLE

#: Without the greys of tab10 and Dark2 (both number 7), because grey means "not pruned".
GROUP_COLOURS = tuple(
    colour
    for name in ("tab10", "Dark2")
    for i, colour in enumerate(colormaps[name].colors)
    if i != 7
)


ENDS = ("input", "output")


@plt.rc_context(STYLE)
def dependency_graph(
    network: nx.DiGraph,
    hide: Collection[str] = (),
    strip: str = BACKBONE,
) -> Figure:
    """Draw layers from input to output, one colour per group of layers that share channels.

    There is one layer per line, in execution order, so that labels do not overlap. An edge to the
    next line is straight; any other edge is an arc on the left. Grey layers are not pruned. The
    nodes ``input`` and ``output`` are rings, and not counted as layers.

    Args:
        network: directed and acyclic; nodes may carry ``type`` (operator), ``group`` (any
            label), ``prunable`` (bool), ``channels`` (outputs) and ``label`` (default: the
            node's name).
        hide: operator types without a line of their own, e.g. "Relu"; edges pass through them.
        strip: prefix to remove from names.

    Raises:
        UserError: the graph has a cycle or no node to draw.
    """
    if not nx.is_directed_acyclic_graph(network):
        raise UserError(f"graph with a cycle: {nx.find_cycle(network)}")
    network = _without_hidden(network, hide)
    if not len(network):
        raise UserError(f"no node is left to draw after hiding {sorted(hide)}")
    position = {
        name: int(data.get("order", i)) for i, (name, data) in enumerate(network.nodes(data=True))
    }
    order = list(nx.lexicographical_topological_sort(network, key=position.get))
    line = {name: -i for i, name in enumerate(order)}
    colours = _group_colours(network, order)
    longest = max([abs(line[a] - line[b]) for a, b in network.edges] or [1])

    names = {name: str(network.nodes[name].get("label", name)) for name in order}
    names = {name: label.removeprefix(strip) for name, label in names.items()}
    details = 0.3 + 0.085 * max(len(label) for label in names.values())  # inches, like all x here
    right = details + 2.3

    fig, ax = plt.subplots(figsize=(right + 3.6, 0.8 + 0.27 * len(order)))
    for a, b in network.edges:
        span = line[a] - line[b]
        bend = 0.0 if span == 1 else 0.25 + 0.75 * (span / longest) ** 0.5
        _draw_edge(ax, line[a], line[b], bend)
    for name, y in line.items():
        data = network.nodes[name]
        face, edge = ("white", "#8C8C8C") if name in ENDS else (colours[name], "white")
        ax.plot(0, y, "o", markersize=10, color=face, markeredgecolor=edge, zorder=3)
        ax.text(0.15, y, names[name], va="center", fontsize=10)
        detail = [str(data["type"])] if data.get("type", name) != name else []
        if data.get("channels"):
            detail.append(f"{data['channels']} channels")
        ax.text(details, y, ", ".join(detail), va="center", fontsize=10, color="#595959")
    ax.set(xlim=(-1.1, right), ylim=(-len(order) + 0.4, 0.6))
    ax.set_axis_off()
    ax.set_title("Layers of one colour lose their channels together", loc="left")
    _draw_legend(ax, network, order, colours, strip)
    plt.close(fig)
    return fig


def _without_hidden(network: nx.DiGraph, hide: Collection[str]) -> nx.DiGraph:
    """Replace every hidden node by edges from its predecessors to its successors."""
    network = network.copy()
    for name in [n for n, data in network.nodes(data=True) if data.get("type") in set(hide)]:
        before, after = list(network.predecessors(name)), list(network.successors(name))
        network.add_edges_from((a, b) for a in before for b in after)
        network.remove_node(name)
    return network


def _group_colours(network: nx.DiGraph, order: list[Hashable]) -> dict[Hashable, object]:
    """Return each node's colour: one per group, in order of appearance; grey if not pruned."""
    groups: dict[Hashable, object] = {}
    colours = {}
    for name in order:
        data = network.nodes[name]
        if not data.get("prunable", False) or data.get("group") is None:
            colours[name] = PALE_GREY
            continue
        new = GROUP_COLOURS[len(groups) % len(GROUP_COLOURS)]
        colours[name] = groups.setdefault(data["group"], new)
    return colours


def _draw_edge(ax: plt.Axes, top: float, bottom: float, bend: float) -> None:
    """Draw an edge from ``top`` to ``bottom``; it bulges to the left by ``bend``."""
    if not bend:
        ax.plot([0, 0], [top, bottom], color="#8C8C8C", linewidth=1.2, zorder=1)
        return
    path = Path(
        [(0, top), (-bend * 4 / 3, top), (-bend * 4 / 3, bottom), (0, bottom)], [1, 4, 4, 4]
    )
    ax.add_patch(
        FancyArrowPatch(path=path, arrowstyle="-", color="#8C8C8C", linewidth=1.2, zorder=1)
    )


def _draw_legend(
    ax: plt.Axes,
    network: nx.DiGraph,
    order: list[Hashable],
    colours: dict[Hashable, object],
    strip: str,
) -> None:
    """Draw a legend with one entry per group and its number of layers."""
    members: dict[object, list[Hashable]] = {}
    for name in [name for name in order if name not in ENDS]:
        data = network.nodes[name]
        key = "not pruned" if colours[name] == PALE_GREY else str(data["group"]).removeprefix(strip)
        members.setdefault(key, []).append(name)
    handles = [
        Line2D(
            [],
            [],
            marker="o",
            linestyle="",
            markersize=9,
            color=colours[names[0]],
            label=f"{key}: {len(names)} layer{'s' * (len(names) > 1)}",
        )
        for key, names in sorted(members.items(), key=lambda item: item[0] == "not pruned")
    ]
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), title="group")
