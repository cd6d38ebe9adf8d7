"""Vertex cover by a bounded search tree: at most `budget` vertices that touch every edge of a graph.

Sets of vertices are integers used as bit masks, and a graph is the list of its vertices' neighbours. Before each
branching, vertices that decide themselves are taken: all neighbours of a leaf, vertices of more neighbours than may
still be taken, two corners of a triangle whose third has no other neighbour, any vertex of a graph that is nothing but
cycles. A branching then takes a vertex of at least 3 neighbours or all of those, so that the tree has at most
T(budget) of them with T(k) = 1 + T(k − 1) + T(k − 3), about 1.47^k. Downey and Fellows 1999, "Parameterized
Complexity", chapter 3.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class TooLong(Exception):
    """The search reached its limit of branchings."""


class Meter:
    """Counts branchings, up to a limit."""

    def __init__(self, limit: int):
        self.limit, self.branchings = limit, 0

    def count(self) -> None:
        """One more; raises TooLong above the limit."""
        self.branchings += 1
        if self.branchings > self.limit:
            raise TooLong


def most_branchings(budget: int) -> int:
    """T(budget): what one search can take at most, whatever the graph."""
    counts = [0, 0, 0]
    for _ in range(budget):
        counts.append(1 + counts[-1] + counts[-3])
    return counts[-1]


def graph_of(edges: np.ndarray) -> list[int]:
    """The neighbours of each vertex, from a symmetric mask (n, n) with a false diagonal."""
    return [int.from_bytes(row.tobytes(), "little") for row in np.packbits(edges, axis=1, bitorder="little")]


def members(mask: int) -> Iterator[int]:
    """The vertices of a set, ascending."""
    while mask:
        yield (mask & -mask).bit_length() - 1
        mask &= mask - 1


def vertex_cover(graph: list[int], among: int, budget: int, meter: Meter) -> int | None:
    """At most `budget` vertices that touch every edge between vertices of `among`, or None if there are no such."""
    stack = [(among, 0, budget)]
    while stack:
        reduced = _reduce(graph, *stack.pop())
        if reduced is None:
            continue
        among, cover, budget, branch = reduced
        if branch is None:
            return cover
        meter.count()
        vertex, near = 1 << branch, graph[branch] & among
        degree = near.bit_count()
        if degree <= budget:
            stack.append((among & ~near & ~vertex, cover | near, budget - degree))
        # tried first: the vertex of most neighbours is in most covers
        stack.append((among & ~vertex, cover | vertex, budget - 1))
    return None


def _reduce(graph: list[int], among: int, cover: int, budget: int) -> tuple[int, int, int, int | None] | None:
    """The same state after all vertices that decide themselves, and the vertex to branch on, or None without edges.

    None in all if no cover is small enough.
    """
    while True:
        before, rest, ends, most, branch = among, among, 0, 0, 0
        while rest:
            vertex = rest & -rest
            near = graph[vertex.bit_length() - 1] & among
            degree, taken = near.bit_count(), 0
            if degree > budget:
                taken = vertex
            elif degree == 1 or (degree == 2 and near & graph[near.bit_length() - 1]):
                taken = near
            elif degree > most:
                most, branch = degree, vertex.bit_length() - 1
            if taken or degree == 0:
                among &= ~(taken | vertex)
            ends += degree
            cover, budget = cover | taken, budget - taken.bit_count()
            if budget < 0:
                return None
            rest &= among & ~vertex
        if among == before:
            if most == 0:
                return among, cover, budget, None
            if ends > 2 * budget * most:
                return None
            if most > 2:
                return among, cover, budget, branch
            # every component is a cycle, of which any vertex is in a smallest cover
            among, cover, budget = among & ~(1 << branch), cover | 1 << branch, budget - 1
