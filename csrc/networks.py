"""Writes order_networks.h: the straight-line parts of the order statistics, which compilers do not unroll from loops.

All over whatever vector the including file defines (V, CE, CX, LOAD, ...: see order_sort.h). Three families are cut
from Batcher's merge exchange (Knuth, The Art of Computer Programming 3, 5.3.4 and Algorithm 5.2.2M), which merges
sorted E and O so that E0 <= O0 <= E1 <= O1 ...: compare E[u] with O[u], then O[u] with E[u + D] for D = ..., 4, 2, 1.
    leaf_N          sorts N rows in registers
    top_E_O         the comparisons E[u] : O[u] and the widest three D, over every s-th element of two lists
    pass_K          K further D: O streams by while a window of 2**(K-1) elements of E stays in registers
Two leaves are merged by Batcher's bitonic sorter instead (1968, "Sorting networks and their applications"): a few
comparisons more, and fewer stores, since either half of the result is at home in the registers.
    lesser_M        the lesser of a[i] and b[M - 1 - i], sorted and stored
    greater_M       the greater ones
    lesser_middle_M, greater_middle_M   the same, but compared with another sorted list on its way to the middle of all
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

LEAF, LEAST, WIDEST = 32, 16, 5
#: two comparisons in five may be done another way (CX), where an ISA has ports that minima and maxima leave idle
TURNS = ("CE", "CX", "CE", "CX", "CE")


def write(lines: list[str]) -> Callable[[str, str], None]:
    """Append comparisons to `lines`."""
    return lambda a, b: lines.append(f"{TURNS[len(lines) % len(TURNS)]}({a}, {b})")


def exchange(emit: Callable[[str, str], None], even: list[str], odd: list[str], widest: int) -> None:
    """Comparisons that merge `even` and `odd`, from distance `widest` down to 1."""
    for e, o in zip(even, odd, strict=False):
        emit(e, o)
    while widest:
        for o, e in zip(odd, even[widest:], strict=False):
            emit(o, e)
        widest //= 2


def sort(emit: Callable[[str, str], None], names: list[str]) -> list[str]:
    """Comparisons that sort `names`; returns the names in ascending order of what they then hold."""
    if len(names) < 2:
        return names
    half = (len(names) + 1) // 2
    even, odd = sort(emit, names[:half]), sort(emit, names[half:])
    widest = 1 << ((len(names) - 1).bit_length() - 1) >> 1
    exchange(emit, even, odd, widest)
    merged = [""] * len(names)
    merged[::2], merged[1::2] = even, odd
    return merged


def leaf(n: int) -> list[str]:
    """A function that loads, checks, sorts and stores n rows."""
    names, lines = [f"r{i}" for i in range(n)], []
    order = sort(write(lines), names)
    loads = [f"V r{i} = LOAD({i});" for i in range(n)]
    checks = [f"CHECK(r{i}, r{min(i + 1, n - 1)})" for i in range(0, n, 2)]
    stores = [f"out[{i}] = {name};" for i, name in enumerate(order)]
    for i in range(n // 4, 0, -1):  # memory works while the registers do
        lines.insert(len(lines) * i // (n // 4 + 1), "ask(ahead);")
    head = f"static void FN(leaf_{n})(const char* const* rows, int64_t offset, V* out, FN(state)* state, "
    head += "ahead_t* ahead) { (void)ahead;"
    return [head, *loads, *checks, *lines, *stores, f"ENDS({order[0]}, {order[-1]})", "}"]


def top(even: int, odd: int) -> list[str]:
    """A function that does the first four levels of a merge on even + odd elements, s apart, in place."""
    e, o, lines = [f"e{i}" for i in range(even)], [f"o{i}" for i in range(odd)], []
    exchange(write(lines), e, o, 4)
    loads = [f"V {name} = {name[0]}[{name[1:]} * s];" for name in e + o]
    stores = [f"{name[0]}[{name[1:]} * s] = {name};" for name in e + o]
    return [
        f"static void FN(top_{even}_{odd})(V* e, V* o, int64_t s, ahead_t* ahead) {{",
        *loads,
        "ask(ahead);",
        *lines,
        *stores,
        "}",
    ]


def window(k: int) -> list[str]:
    """A function that does the k levels D = s 2**(k-1) ... s on lists of `je` and `jo` elements, s apart.

    Results go to de and dd, `t` apart. Past the ends stand the greatest and the least key, which move nothing.
    """
    w = 1 << (k - 1)
    levels = [1 << level for level in reversed(range(k))]

    def step(i: int, guarded: bool) -> list[str]:
        load_e, load_o = f"e[(j + {i + w}) * s]", f"o[(j + {i}) * s]"
        if guarded:
            load_e = f"*(j + {i + w} < je ? e + (j + {i + w}) * s : &greatest)"
            load_o = f"*(j + {i} < jo ? o + (j + {i}) * s : &least)"
        when_e, when_o = (f"if (j + {i + 1} < je) ", f"if (j + {i} < jo) ") if guarded else ("", "")
        return [
            f"x{i} = {load_e}; y = {load_o};",
            *(f"{TURNS[(i * k + at) % len(TURNS)]}(y, x{(i + level) % w})" for at, level in enumerate(levels)),
            f"{when_o}dd[(j + {i}) * t] = y;",
            f"{when_e}de[(j + {i + 1}) * t] = x{(i + 1) % w};",
        ]

    return [
        f"static void FN(pass_{k})(const V* e, int64_t je, const V* o, int64_t jo, int64_t s,",
        "V* de, V* dd, int64_t t, ahead_t* ahead) {",
        "const V greatest = GREATEST, least = LEAST;",
        *(f"V x{i} = e[{i} * s];" for i in range(w)),
        "V y; int64_t j = 0;",
        "de[0] = x0;",
        f"for (; j + {2 * w} <= je && j + {w} <= jo; j += {w}) {{",
        "ask(ahead);",
        *(line for i in range(w) for line in step(i, guarded=False)),
        "}",
        f"for (; j < je; j += {w}) {{",
        *(line for i in range(w) for line in step(i, guarded=True)),
        "}",
        "}",
    ]


def bitonic(emit: Callable[[str, str], None], names: list[str], rises_last: bool) -> list[str]:
    """Comparisons that sort `names`, which fall and then rise (`rises_last`), or rise and then fall.

    Returns the names in ascending order of what they then hold. Up to a power of two stand keys that go on rising or
    falling, the greatest or the least: None, whose comparisons are known beforehand.
    """
    size = 1 << (len(names) - 1).bit_length()
    at: list[str | None] = [*names, *[None] * (size - len(names))]
    distance = size // 2
    while distance:
        for i in (i for i in range(size) if not i & distance):
            a, b = at[i], at[i + distance]
            if a and b:
                emit(a, b)
            else:
                at[i], at[i + distance] = (a or b, None) if rises_last else (None, a or b)
        distance //= 2
    return [name for name in at if name]


def half(m: int, greater: bool, middle: bool) -> list[str]:
    """A function that sorts m keys, the lesser or the greater of pairs from two leaves; b[m - 1] is `last`."""
    names, lines = [f"x{i}" for i in range(m)], []
    order = bitonic(write(lines), names, rises_last=greater)
    operation = "MAX" if greater else "MIN"
    seconds = ["last", *(f"b[{m - 1 - i}]" for i in range(1, m))]
    loads = [f"V {name} = {operation}(a[{i}], {seconds[i]});" for i, name in enumerate(names)]
    lines.insert(len(lines) // 2, "ask(ahead);")
    if middle:
        arguments = "const V* other, V* most, V* fewest"
        ends = ["V most0 = most[0], most1 = most[1], fewest0 = fewest[0], fewest1 = fewest[1];"]
        for i, name in enumerate(order):
            ends += [
                f"most{i % 2} = MAX(MIN({name}, other[{-i}]), most{i % 2});",
                f"fewest{i % 2} = MIN(MAX({name}, other[{-i}]), fewest{i % 2});",
            ]
        ends.append("most[0] = most0; most[1] = most1; fewest[0] = fewest0; fewest[1] = fewest1;")
    else:
        arguments = "V* out"
        ends = [f"out[{i}] = {name};" for i, name in enumerate(order)]
    name = ("greater" if greater else "lesser") + ("_middle" if middle else "") + f"_{m}"
    head = f"static void FN({name})(const V* a, const V* b, V last, {arguments}, ahead_t* ahead) {{"
    return [head, *loads, *lines, *ends, "}"]


def header() -> str:
    """The text of order_networks.h."""
    pairs = [(e, o) for e in range(4, 9) for o in (e - 1, e) if o >= 4]
    lines = ["/* Written by networks.py; see there. */"]
    for n in range(1, LEAF + 1):
        lines += leaf(n)
    for even, odd in pairs:
        lines += top(even, odd)
    for k in range(2, WIDEST + 1):
        lines += window(k)
    for m in range(LEAST, LEAF + 1):
        for greater, middle in product((False, True), repeat=2):
            lines += half(m, greater, middle)
    leaves = ", ".join(f"FN(leaf_{n})" for n in range(1, LEAF + 1))
    tops = ", ".join(f"[{e} - 4][{e} - {o}] = FN(top_{e}_{o})" for e, o in pairs)
    passes = ", ".join(f"FN(pass_{k})" for k in range(2, WIDEST + 1))
    lines += [
        f"static FN(leaf_fn)* const FN(leaves)[] = {{NULL, {leaves}}};",
        f"static FN(top_fn)* const FN(tops)[5][2] = {{{tops}}};",
        f"static FN(pass_fn)* const FN(passes)[] = {{NULL, NULL, {passes}}};",
    ]
    for middle in ("", "_middle"):
        both = ", ".join(f"{{FN(lesser{middle}_{m}), FN(greater{middle}_{m})}}" for m in range(LEAST, LEAF + 1))
        lines.append(f"static FN(half{middle}_fn)* const FN(halves{middle})[][2] = {{{both}}};")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(header(), end="")
