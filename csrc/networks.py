"""Writes order_networks.h: the straight-line parts of the order statistics, which compilers do not unroll from loops.

Three families, over whatever vector the including file defines (V, CE, CX, LOAD, ...: see order_sort.h), all
cut from Batcher's merge exchange (Knuth, The Art of Computer Programming 3, 5.3.4 and Algorithm 5.2.2M), which merges
sorted E and O so that E0 <= O0 <= E1 <= O1 ...: compare E[u] with O[u], then O[u] with E[u + D] for D = ..., 4, 2, 1.
    leaf_N          sorts N rows in registers
    top_E_O         the comparisons E[u] : O[u] and the widest three D, over every s-th element of two lists
    pass_K          K further D: O streams by while a window of 2**(K-1) elements of E stays in registers
"""

from __future__ import annotations

from collections.abc import Callable

LEAF, WIDEST = 32, 5
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


def header() -> str:
    """The text of order_networks.h."""
    pairs = [(e, o) for e in range(4, 9) for o in (e - 1, e) if o >= 4]
    lines = ["/* Written by networks.py; see there. */"]
    for n in range(1, LEAF + 1):
        lines += leaf(n)
    for even, odd in pairs:
        lines += top(even, odd)
    for k in range(1, WIDEST + 1):
        lines += window(k)
    leaves = ", ".join(f"FN(leaf_{n})" for n in range(1, LEAF + 1))
    tops = ", ".join(f"[{e} - 4][{e} - {o}] = FN(top_{e}_{o})" for e, o in pairs)
    passes = ", ".join(f"FN(pass_{k})" for k in range(1, WIDEST + 1))
    lines += [
        f"static FN(leaf_fn)* const FN(leaves)[] = {{NULL, {leaves}}};",
        f"static FN(top_fn)* const FN(tops)[5][2] = {{{tops}}};",
        f"static FN(pass_fn)* const FN(passes)[] = {{NULL, {passes}}};",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(header(), end="")
