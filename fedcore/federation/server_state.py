"""What a server optimiser remembers from round to round, as bytes that say so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedcore.errors import FormatError, LayoutError
from fedcore.updates import Layout
from fedcore.updates.header import json_object

_SEPARATOR = ":"


@dataclass(frozen=True, eq=False, repr=False)
class ServerState:
    """The moments of a server optimiser after `round` rounds.

    optimizer   class name of the optimiser that made it
    round       how many steps are in it
    moments     moment ("m", "v") -> tensor name -> fp64 array of that tensor's shape
    """

    optimizer: str
    round: int
    moments: Mapping[str, Mapping[str, np.ndarray]]

    def __repr__(self) -> str:
        tensors = max((len(named) for named in self.moments.values()), default=0)
        return f"<ServerState of {self.optimizer}, round {self.round}: {', '.join(self.moments)} of {tensors} tensors>"

    def to_bytes(self) -> bytes:
        """Safetensors bytes in fp64, sorted by name; equal states give equal bytes."""
        tensors = {
            f"{moment}{_SEPARATOR}{name}": np.ascontiguousarray(values, np.float64)
            for moment, named in self.moments.items()
            for name, values in named.items()
        }
        # one metadata key, since safetensors writes several in no fixed order
        said = json.dumps({"optimizer": self.optimizer, "round": self.round})
        return save(tensors, {"fedcore.server_state": said})

    def digest(self) -> str:
        """SHA-256 (hex) of `to_bytes`."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes, source: str) -> ServerState:
        """Read what `to_bytes` made. Raises FormatError naming `source`."""
        try:
            tensors = load(data)
            length = int.from_bytes(data[:8], "little")
            metadata = json_object(data[8 : 8 + length], "header")["__metadata__"]
            said = json_object(metadata["fedcore.server_state"], "metadata")
            optimizer, number = str(said["optimizer"]), int(said["round"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{source}: not the state of a server optimiser ({error}); restore it") from None
        moments: dict[str, dict[str, np.ndarray]] = {}
        for key, values in tensors.items():
            moment, _, name = key.partition(_SEPARATOR)
            moments.setdefault(moment, {})[name] = values
        return cls(optimizer, number, moments)

    def check(self, optimizer: str, moments: tuple[str, ...], layout: Layout) -> None:
        """Raise LayoutError unless this is a state of that optimiser for tensors of that layout."""
        if self.optimizer != optimizer or set(self.moments) != set(moments):
            raise LayoutError(f"server state: it is of {self.optimizer}, expected {optimizer}; start a new run")
        shapes = dict(zip(layout.names, layout.shapes, strict=True))
        for moment in moments:
            found = {name: values.shape for name, values in self.moments[moment].items()}
            if found != shapes:
                name = next(n for n in sorted(found.keys() | shapes) if found.get(n) != shapes.get(n))
                raise LayoutError(
                    f"server state: {moment} of tensor {name!r} has shape {found.get(name)}, expected "
                    f"{shapes.get(name)}; start a new run"
                )
