"""What a compiler made of a kernel, read from the text of its IR: Triton's, then LLVM's after it was optimised."""

from __future__ import annotations

import re

#: arguments that grow with the number of columns
COLUMNS = ("d", "d_out", "d_in", "length", "size", "stride", "width")

#: in vectors `<...>` elements that nothing uses are poison, and strings hold assembly
NOT_OPERANDS = re.compile(r'"[^"]*"|<[^<>]*>|[;!].*')
#: vectors and structures that are filled one element after the other begin as poison
FILLED = re.compile(r"insert(?:element|value) (?:\{[^}]*\}|\[[^\]]*\])? *poison|shufflevector .*")
#: AMD's lanes that a shuffle gives nothing keep its first operand, and nothing uses them
SHUFFLED = re.compile(r"(@llvm\.amdgcn\.update\.dpp\.\w+\(\w+) poison")
STORE = re.compile(r'asm sideeffect "[^"]*\bst\.global|\bstore .*addrspace\(1\)|@llvm\.amdgcn\.raw\.ptr\.buffer\.store')


def instructions(ir: str) -> list[str]:
    """The lines of the functions' bodies."""
    return [line.strip() for line in ir.splitlines() if line.startswith("  ")]


def stores(llvm: str) -> list[str]:
    """The instructions that write global memory."""
    return [line for line in instructions(llvm) if STORE.search(line)]


def undefined(llvm: str) -> list[str]:
    """The instructions with an operand that is poison, where LLVM does not put it by itself.

    An operation without a meaning, such as a shift of 64 bits by 64, is poison, and LLVM drops what depends on it: a
    store of it writes what a register happens to hold, and a whole kernel may be gone.
    """
    found = []
    for line in instructions(llvm):
        if "poison" in line and re.search(
            r"\bpoison\b", SHUFFLED.sub(r"\1", FILLED.sub("", NOT_OPERANDS.sub("", line)))
        ):
            found.append(line)
    return found


def narrow(triton: str) -> list[str]:
    """The sums and products in 32 bits of an argument that grows with the number of columns: they could overflow."""
    found, wide = [], {f"%{name}" for name in COLUMNS}
    for line in instructions(triton):
        match = re.match(r"(%\w+) = ([\w.]+) (.*) : .*?(\w*i32)>?(?: loc\(.*)?$", line)
        if match and wide & set(re.findall(r"%\w+", match[3])):
            if match[2] in ("tt.splat", "tt.expand_dims", "tt.broadcast"):
                wide.add(match[1])
            elif match[2] in ("arith.addi", "arith.muli"):
                found.append(line)
    return found
