"""Layout: which tensors an update has, in canonical order. Updates with equal layouts can be rows of one cohort."""

from __future__ import annotations

import hashlib
import json
import math
import re
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from fedcore.dtypes import STORAGE
from fedcore.errors import LayoutError
from fedcore.numbers import shown, shown_bytes
from fedcore.quantized import QUANTIZED, part_sizes

#: longer names occur in no model; the bound keeps a hostile file from making name matching slow
LONGEST_NAME = 512
#: NumPy 1.26's limit on dimensions
MOST_DIMENSIONS = 32
#: JSON can escape half a character, which no file name or UTF-8 text can hold
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def name_problem(name: object) -> str | None:
    """What is wrong with a tensor name, in words, or None if nothing is."""
    if not isinstance(name, str):
        return f"its name is of type {type(name).__name__}, expected str"
    if not name or name == "__metadata__":
        return "its name is reserved or empty; rename it"
    if len(name) > LONGEST_NAME:
        return f"its name has {len(name)} characters, expected at most {LONGEST_NAME}; rename it"
    if LONE_SURROGATE.search(name):
        return "its name is not valid Unicode (a lone surrogate); rename it"
    return None


@dataclass(frozen=True, repr=False)
class Layout:
    """The tensors of an update in canonical order, which is the order of their names (by code point).

    names     (s,) tensor names, unique and sorted
    shapes    (s,) their shapes
    dtypes    (s,) fedcore dtype names: 'float32', 'float16' or 'bfloat16'
    formats   (s,) how each lies and travels: its dtype, another of them, 'int8' or 'nf4'; () stands for the dtypes.
              Updates of one cohort may differ in it.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    formats: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.formats:
            object.__setattr__(self, "formats", self.dtypes)

    @classmethod
    def from_entries(
        cls, entries: Iterable[tuple[str, tuple[int, ...], str]], formats: Mapping[str, str] | None = None
    ) -> Layout:
        """The layout of (name, shape, dtype name) entries in any order; `formats` where they are not the dtypes.

        Raises LayoutError for a repeated name.
        """
        ordered = sorted(entries, key=lambda entry: entry[0])
        for (name, *_), (following, *_) in pairwise(ordered):
            if name == following:
                raise LayoutError(f"tensor {shown(name)}: given twice, expected unique names")
        names, shapes, dtypes = zip(*ordered, strict=True) if ordered else ((), (), ())
        wire = tuple((formats or {}).get(name, dtype) for name, dtype in zip(names, dtypes, strict=True))
        return cls(names, shapes, dtypes, wire)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<Layout: {len(self)} tensors, {shown_bytes(int(self.nbytes.sum()))}>"

    @cached_property
    def index(self) -> dict[str, int]:
        """name -> its position in canonical order."""
        return {name: k for k, name in enumerate(self.names)}

    @cached_property
    def sizes(self) -> np.ndarray:
        """(s,) int64: elements of each tensor."""
        return np.array([math.prod(shape) for shape in self.shapes], np.int64)

    @cached_property
    def nbytes(self) -> np.ndarray:
        """(s,) int64: bytes of each tensor as it lies, scales included."""
        found = []
        for size, format in zip(self.sizes.tolist(), self.formats, strict=True):
            parts = part_sizes(format, size) if format in QUANTIZED else ((STORAGE[format], size),)
            found.append(sum(dtype.itemsize * length for dtype, length in parts))
        return np.array(found, np.int64)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the names, shapes and dtypes in canonical order, and of formats that are not the dtypes."""
        fields = [self.names, self.shapes, self.dtypes, *([self.formats] if self.formats != self.dtypes else [])]
        text = json.dumps(fields, separators=(",", ":"))
        return hashlib.sha256(b"fedcore layout 1\n" + text.encode()).hexdigest()

    def select(self, names: Iterable[str]) -> Layout:
        """The layout of just these tensors, in canonical order. Raises LayoutError for a name that is not there."""
        wanted = set(names)
        for name in sorted(wanted - self.index.keys()):
            raise LayoutError(f"tensor {shown(name)}: not among the {len(self)} tensors of the update; check its name")
        keep = [k for k, name in enumerate(self.names) if name in wanted]
        fields = (self.names, self.shapes, self.dtypes, self.formats)
        return Layout(*(tuple(field[k] for k in keep) for field in fields))  # type: ignore[arg-type]

    def decoded(self) -> Layout:
        """The layout of the same tensors where each lies as its dtype."""
        return Layout(self.names, self.shapes, self.dtypes)

    def difference(self, other: Layout) -> str | None:
        """How `other` first differs from this layout, formats aside, in words that name the tensor, or None."""
        if self == other:
            return None
        if missing := sorted(self.index.keys() - other.index.keys()):
            return f"tensor {shown(missing[0])} is missing" + _more(missing)
        if extra := sorted(other.index.keys() - self.index.keys()):
            return f"tensor {shown(extra[0])} is extra" + _more(extra)
        for k, name in enumerate(self.names):
            if self.shapes[k] != other.shapes[k]:
                return f"tensor {shown(name)} has shape {other.shapes[k]}, expected {self.shapes[k]}"
            if self.dtypes[k] != other.dtypes[k]:
                return f"tensor {shown(name)} is {other.dtypes[k]}, expected {self.dtypes[k]}"
        return None


#: layouts that are in use, by digest
_IN_USE: weakref.WeakValueDictionary[str, Layout] = weakref.WeakValueDictionary()


def shared_layout(layout: Layout) -> Layout:
    """An equal layout that is in use already, or else this one: a thousand clients of one adapter share its names."""
    return _IN_USE.setdefault(layout.digest, layout)


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
