"""Draw the dependency graph of a network as a column of layers, with arcs for skips."""

import itertools
from collections.abc import Collection

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from gaitlib.model import BACKBONE
from workbook.plots.style import PALE_GREY, styled

#: Without the greys of tab10 and Dark2 (both number 7), because grey means "not pruned".
GROUP_COLOURS = [
    colour for name in ("tab10", "Dark2") for colour in np.delete(plt.get_cmap(name).colors, 7, 0)
]
NOT_PRUNED = "not pruned"
ENDS = ("input", "output")
LINE = 0.27  # inches between layers


@styled
def dependency_graph(network: nx.DiGraph, hide: Collection[str] = ()) -> Figure:
    """Draw layers from input to output, one colour per group of layers that share channels.

    There is one layer per line, in execution order, so that labels do not overlap. An edge to the
    next line is straight; any other edge is an arc on the left. Grey layers are not pruned. The
    nodes ``input`` and ``output`` are rings, and not counted as layers.

    Args:
        network: directed and acyclic; nodes carry ``type`` (operator), ``group`` (its name),
            ``prunable`` (bool) and ``channels`` (outputs).
        hide: operator types without a line of their own, e.g. "Relu"; edges pass through them.
    """
    network = _without_hidden(network, hide)
    position = {name: i for i, name in enumerate(network)}
    order = list(nx.lexicographical_topological_sort(network, key=position.get))
    line = {name: -i for i, name in enumerate(order)}
    nodes = pd.DataFrame.from_dict(dict(network.nodes(data=True)), orient="index").loc[order]
    nodes["group"] = nodes["group"].where(nodes["prunable"], NOT_PRUNED)
    names = nodes.index.str.removeprefix(BACKBONE)
    pruned = [group for group in nodes["group"].unique() if group != NOT_PRUNED]
    colours = dict(zip(pruned, itertools.cycle(GROUP_COLOURS), strict=False))
    colours[NOT_PRUNED] = PALE_GREY

    details = 0.3 + 0.085 * names.str.len().max()  # inches, like all x here
    right = details + 2.3
    fig, ax = plt.subplots(figsize=(right + 3.6, 0.8 + LINE * len(order)))
    longest = max([line[a] - line[b] for a, b in network.edges], default=1)
    for a, b in network.edges:
        span = line[a] - line[b]
        bend = 0 if span == 1 else 0.25 + 0.75 * (span / longest) ** 0.5  # inches
        curve = f"arc3,rad={2 * bend / (LINE * span)}"
        look = {"arrowstyle": "-", "color": "#8C8C8C", "linewidth": 1.2, "zorder": 1}
        ax.add_patch(FancyArrowPatch((0, line[a]), (0, line[b]), connectionstyle=curve, **look))
    for label, (name, node) in zip(names, nodes.iterrows(), strict=True):
        y = line[name]
        face, edge = ("white", "#8C8C8C") if name in ENDS else (colours[node["group"]], "white")
        ax.plot(0, y, "o", markersize=10, color=face, markeredgecolor=edge, zorder=3)
        ax.text(0.15, y, label, va="center", fontsize=10)
        if name not in ENDS:
            detail = f"{node['type']}, {node['channels']} channels"
            ax.text(details, y, detail, va="center", fontsize=10, color="#595959")
    ax.set(xlim=(-1.1, right), ylim=(-len(order) + 0.4, 0.6))
    ax.set_axis_off()
    ax.set_title("Layers of one colour lose their channels together", loc="left")
    counts = nodes["group"].drop(index=list(ENDS), errors="ignore").value_counts(sort=False)
    handles = []
    for group, count in sorted(counts.items(), key=lambda item: item[0] == NOT_PRUNED):
        words = f"{group.removeprefix(BACKBONE)}: {count} layer{'s' * (count > 1)}"
        look = {"marker": "o", "linestyle": "", "markersize": 9, "color": colours[group]}
        handles.append(Line2D([], [], label=words, **look))
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), title="group")
    return fig


def _without_hidden(network: nx.DiGraph, hide: Collection[str]) -> nx.DiGraph:
    """Replace every hidden node by edges from its predecessors to its successors."""
    network = network.copy()
    for name in [n for n, data in network.nodes(data=True) if data.get("type") in set(hide)]:
        before, after = list(network.predecessors(name)), list(network.successors(name))
        network.add_edges_from((a, b) for a in before for b in after)
        network.remove_node(name)
    return network
