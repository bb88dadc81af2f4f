"""How much can flow from a source to a sink, when every edge lets through only so much?

The network is layered: a source feeds the nodes of the top layer, whose edges lead to the layer below, and so on down
to the nodes of layer 0, which feed the sink.  Many problems that share the edges between layers, and differ in what the
source supplies and what the sink takes, are solved at once.

By push and relabel (Goldberg and Tarjan 1988, https://doi.org/10.1145/48014.61090), all nodes of a layer at a time:
what a node holds in excess is pushed along edges that lead one step nearer to the sink, where some capacity is left,
down or back up.  When all excess that is left is cut off from the sink, the sink has got the maximum.  Exact up to
rounding in float64: no capacity is made an integer.

Axes: p problem, u node of a layer, w node of the layer below.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# What counts as no excess, as a share of what can flow at most; the rounding of some thousand nodes adds up to 1e-12.
_NOTHING = 1e-15


def max_flows(layers: Sequence[Tensor], supply: Tensor, demand: Tensor) -> Tensor:
    """The largest flow of each problem.

    Args:
        layers: capacities between one layer and the next, (upper node, lower node), lowest first; non-negative.
        supply: what the source feeds to each node of the top layer at most, (problem, node).
        demand: what the sink takes from each node of layer 0 at most, (problem, node).

    Returns:
        (problem,) in float64.

    Example:
        Both paths of the first problem are open; of the second, the sink takes little from one:

        >>> import torch
        >>> edges = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
        >>> max_flows([edges], supply=torch.ones(2, 2), demand=torch.tensor([[1.0, 1.0], [0.25, 1.0]]))
        tensor([1.0000, 0.7500], dtype=torch.float64)
    """
    problems = _Problems([layer.double() for layer in layers], supply.double(), demand.double())
    flows = torch.zeros(len(supply), dtype=torch.float64, device=supply.device)
    running = torch.arange(len(supply), device=supply.device)
    while True:
        problems.measure_distances()
        active = problems.active()
        flows[running[~active]] = problems.flow[~active]
        if not active.any():
            return flows
        running = running[active]
        problems.keep(active)
        problems.push()


class _Problems:
    """The state of all problems that still run.

    Attributes:
        left: what each edge still lets through, (problem, upper, lower) per layer of edges.
        back: what flows along it and can be sent back, the same.
        excess: what arrived at each node and has not left it, (problem, node) per layer of nodes.
        demand: what the sink still takes, (problem, node).
        flow: what the sink has got, (problem,).
        steps: edges from each node to the sink, (problem, node) per layer of nodes; infinity where no path is left.
    """

    def __init__(self, layers: Sequence[Tensor], supply: Tensor, demand: Tensor) -> None:
        self.left = [layer.expand(len(supply), -1, -1).clone() for layer in layers]
        self.back = [torch.zeros_like(edges) for edges in self.left]
        below = [demand.new_zeros(len(supply), layer.shape[1]) for layer in layers]
        self.excess = [*below, supply.clone()]
        self.demand = demand.clone()
        self.flow = demand.new_zeros(len(supply))
        self.nothing = _NOTHING * torch.minimum(supply.sum(1), demand.sum(1))
        self.steps: list[Tensor] = []

    def keep(self, which: Tensor) -> None:
        """Drops all other problems."""
        if which.all():
            return
        for state in (self.left, self.back, self.excess, self.steps):
            state[:] = [part[which] for part in state]
        self.demand, self.flow, self.nothing = self.demand[which], self.flow[which], self.nothing[which]

    def active(self) -> Tensor:
        """Where some excess can still reach the sink, (problem,)."""
        nothing = self.nothing[:, None]
        found = [((e > nothing) & s.isfinite()).any(1) for e, s in zip(self.excess, self.steps, strict=True)]
        return torch.stack(found).any(0)

    def measure_distances(self) -> None:
        """Sweeps up and down until no node finds a shorter way."""
        down, up = [[_step(edges) for edges in kind] for kind in (self.left, self.back)]
        self.steps = [torch.full_like(e, torch.inf, dtype=torch.float32) for e in self.excess]
        self.steps[0][self.demand > 0] = 1
        top, shorter = len(down), True
        while shorter:
            shorter = False
            for n in [*range(1, top + 1), *range(top - 1, -1, -1)]:
                found = self.steps[n]
                if n > 0:
                    found = found.minimum((down[n - 1] + self.steps[n - 1][:, None]).amin(2))
                if n < top:
                    found = found.minimum((up[n] + self.steps[n + 1][:, :, None]).amin(1))
                shorter = shorter or bool((found < self.steps[n]).any())
                self.steps[n] = found

    def push(self) -> None:
        """From each layer to the one below, from the top to the sink; then from each to the one above."""
        for n in range(len(self.left), 0, -1):
            nearer = self.steps[n][:, :, None] == self.steps[n - 1][:, None] + 1
            self._move(n, n - 1, self.left[n - 1], self.back[n - 1], nearer, dim=2)
        to_sink = self.excess[0].minimum(self.demand).masked_fill_(self.steps[0] != 1, 0)
        self.excess[0] -= to_sink
        self.demand -= to_sink
        self.flow += to_sink.sum(1)
        for n in range(len(self.left)):
            nearer = self.steps[n][:, None] == self.steps[n + 1][:, :, None] + 1
            self._move(n, n + 1, self.back[n], self.left[n], nearer, dim=1)

    def _move(self, start: int, end: int, edges: Tensor, reverse: Tensor, nearer: Tensor, dim: int) -> None:
        """Fills the edges (problem, upper, lower) of each node one after the other, along ``dim``, while it has excess.

        Infinity equals infinity plus one, so that excess also moves between nodes without a path to the sink: they stay
        without.
        """
        room = edges.masked_fill(~nearer, 0)
        before = room.cumsum(dim) - room
        moved = (self.excess[start].unsqueeze(dim) - before).clamp_min_(0).minimum(room)
        edges -= moved
        reverse += moved
        self.excess[start] = (self.excess[start] - moved.sum(dim)).clamp_min_(0)
        self.excess[end] += moved.sum(3 - dim)


def _step(edges: Tensor) -> Tensor:
    """1 along edges where something can pass, infinity along the others; float32 holds all numbers of steps."""
    return torch.ones_like(edges, dtype=torch.float32).masked_fill_(edges <= 0, torch.inf)
