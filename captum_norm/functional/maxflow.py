"""How much can flow from a source to a sink, when every edge lets through only so much?

The network is layered: a source feeds the nodes of the top layer, whose edges lead to the layer below, and so on down
to the nodes of layer 0, which feed the sink.  Many problems that share the edges between layers, and differ in what the
source supplies and what the sink takes, are solved at once.

No flow exceeds what is supplied, nor what the sink takes, where a path leads from one to the other; mostly it is one of
the two, and the ``even_flow`` shows that it is.  The others are solved by push and relabel (Goldberg and Tarjan 1988,
https://doi.org/10.1145/48014.61090), all nodes of a layer at a time, beginning with the even flow cut off at what edges
let through: of what a node gets it then holds an excess, or it lacks some of what it gives.  Excess is pushed along
edges that lead one step nearer to where something is lacking, down or back up, until all that is left is cut off.
Exact up to rounding in float64: no capacity is made an integer.

Axes: p problem, u node of a layer, w node of the layer below.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captum_norm.functional.even_flow import EvenFlow, even_flow

# What counts as no excess, as a share of what can flow at most; the rounding of some thousand nodes adds up to 1e-12.
_NOTHING = 1e-15
_ROUNDING = 1e-12

# Numbers that the problems pushed at once may hold per kind of state.
_STATE = 1 << 20


def max_flows(
    layers: Sequence[Tensor], supply: Tensor, demand: Tensor, on_found: Callable[[int], object] | None = None
) -> Tensor:
    """The largest flow of each problem.

    Args:
        layers: capacities between one layer and the next, (upper node, lower node), lowest first; non-negative.
        supply: what the source feeds to each node of the top layer at most, (problem, node).
        demand: what the sink takes from each node of layer 0 at most, (problem, node).
        on_found: told, each time that some flows are found, how many.

    Returns:
        (problem,) in float64.

    Example:
        Both paths of the first problem are open; of the second, the sink takes little from one:

        >>> import torch
        >>> edges = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
        >>> max_flows([edges], supply=torch.ones(2, 2), demand=torch.tensor([[1.0, 1.0], [0.25, 1.0]]))
        tensor([1.0000, 0.7500], dtype=torch.float64)
    """
    told = on_found or (lambda count: None)
    layers, supply, demand = [layer.double() for layer in layers], supply.double(), demand.double()
    if not layers:
        told(len(supply))
        return torch.minimum(supply, demand).sum(1)
    even = even_flow(layers, supply, demand)
    flows = even.limit()
    left = (even.passing() < flows * (1 - _ROUNDING)).nonzero()[:, 0]
    told(len(supply) - len(left))
    at_once = max(1, _STATE // max(1, sum(layer.numel() for layer in layers)))
    for some in torch.split(left, at_once) if len(left) else ():
        flows[some] = _Problems(layers, even, some).solve(flows[some])
        told(len(some))
    return flows


class _Problems:
    """The state of some problems, on the nodes that lie on their paths.

    Attributes:
        left: what each edge still lets through, (problem, upper, lower) per layer of edges.
        back: what flows along it and can be sent back, the same.
        excess: what arrived at each node and has not left it, (problem, node) per layer of nodes.
        lack: what left it, or is still taken by the sink, and has not arrived, the same.
        steps: edges from each node to where something is lacking, the same; infinity where no path is left.
    """

    def __init__(self, layers: Sequence[Tensor], even: EvenFlow, which: Tensor) -> None:
        nodes = [alive[which].any(0).nonzero()[:, 0] for alive in even.alive]
        self.supply, self.demand = even.supply[which][:, nodes[-1]], even.demand[which][:, nodes[0]]
        self.left, self.back = [], []
        over = [even.alive[n].new_zeros(len(which), len(some), dtype=torch.float64) for n, some in enumerate(nodes)]
        over[-1] += self.supply
        over[0] -= self.demand
        for n, (layer, (above, below)) in enumerate(zip(layers, even.used, strict=True)):
            lower, upper = nodes[n], nodes[n + 1]
            left = layer[upper][:, lower] * even.alive[n + 1][which][:, upper, None]
            left *= even.alive[n][which][:, None, lower]
            flow = (above[which][:, upper, None] * below[which][:, None, lower]).clamp_max_(1).mul_(left)
            over[n + 1] -= flow.sum(2)
            over[n] += flow.sum(1)
            self.left.append(left.sub_(flow))
            self.back.append(flow)
        self.excess, self.lack = [o.clamp_min(0) for o in over], [o.neg().clamp_min_(0) for o in over]
        self.steps: list[Tensor] = []

    def solve(self, limit: Tensor) -> Tensor:
        """The flow of each, (problem,), which is at most ``limit``."""
        flows, running, self.nothing = limit.clone(), torch.arange(len(limit), device=limit.device), _NOTHING * limit
        while True:
            self.measure_distances()
            full = self.passing() >= limit[running] * (1 - _ROUNDING)
            active = self.active() & ~full
            cut = ~active & ~full
            flows[running[cut]] = self.cut(cut).minimum(limit[running[cut]])
            if not active.any():
                return flows
            running = running[active]
            self.keep(active)
            self.push()

    def passing(self) -> Tensor:
        """What flows from source to sink if excess is sent back and what lacks is not taken, (problem,)."""
        held, lacking = (torch.stack([part.sum(1) for part in kind]).sum(0) for kind in (self.excess, self.lack))
        supply, demand = self.supply.sum(1), self.demand.sum(1)
        return torch.where(supply <= demand, supply - held, demand - lacking)

    def cut(self, which: Tensor) -> Tensor:
        """What lets through least between excess and what lacks, of problems without a path: a sum without differences.

        Around it, source and sink are joined to their nodes.
        """
        far = [steps[which].isinf() for steps in self.steps]
        total = (self.supply[which] * ~far[-1]).sum(1) + (self.demand[which] * far[0]).sum(1)
        for n, (left, back) in enumerate(zip(self.left, self.back, strict=True)):
            between = far[n + 1][:, :, None] & ~far[n][:, None]
            total += ((left[which] + back[which]) * between).sum((1, 2))
        return total

    def keep(self, which: Tensor) -> None:
        """Drops all other problems."""
        if which.all():
            return
        for state in (self.left, self.back, self.excess, self.lack, self.steps):
            state[:] = [part[which] for part in state]
        self.supply, self.demand, self.nothing = self.supply[which], self.demand[which], self.nothing[which]

    def active(self) -> Tensor:
        """Where some excess can still reach what lacks, (problem,)."""
        nothing = self.nothing[:, None]
        found = [((e > nothing) & s.isfinite()).any(1) for e, s in zip(self.excess, self.steps, strict=True)]
        return torch.stack(found).any(0)

    def measure_distances(self) -> None:
        """Sweeps up and down until no node finds a shorter way."""
        down, up = [[_step(edges) for edges in kind] for kind in (self.left, self.back)]
        nothing = self.nothing[:, None]
        self.steps = [torch.where(lack > nothing, 1.0, torch.inf) for lack in self.lack]
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
        """From each layer to the one below, from the top down; then from each to the one above."""
        self._take(0)
        for n in range(len(self.left), 0, -1):
            nearer = self.steps[n][:, :, None] == self.steps[n - 1][:, None] + 1
            self._move(n, n - 1, self.left[n - 1], self.back[n - 1], nearer, dim=2)
        for n in range(len(self.left)):
            nearer = self.steps[n][:, None] == self.steps[n + 1][:, :, None] + 1
            self._move(n, n + 1, self.back[n], self.left[n], nearer, dim=1)

    def _move(self, start: int, end: int, edges: Tensor, reverse: Tensor, nearer: Tensor, dim: int) -> None:
        """Fills all edges (problem, upper, lower) of each node to the same part, along ``dim``, with what it holds.

        Infinity equals infinity plus one, so that excess also moves between nodes without a path to what lacks: they
        stay without.
        """
        room = edges * nearer
        most, held = room.sum(dim), self.excess[start]
        part = torch.where(most > held, held / most.clamp_min(torch.finfo(most.dtype).tiny), 1.0)
        moved = room.mul_(part.unsqueeze(dim))
        edges -= moved
        reverse += moved
        self.excess[start] = held - held.minimum(most)
        self.excess[end] += moved.sum(3 - dim)
        self._take(end)

    def _take(self, n: int) -> None:
        """Excess makes up for what lacks at the same node."""
        met = self.excess[n].minimum(self.lack[n])
        self.excess[n] -= met
        self.lack[n] -= met


def _step(edges: Tensor) -> Tensor:
    """1 along edges where something can pass, infinity along the others; float32 holds all numbers of steps."""
    return torch.ones_like(edges, dtype=torch.float32).masked_fill_(edges <= 0, torch.inf)
