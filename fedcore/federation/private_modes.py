"""What a private round is for the ways to add noise in it: at the server, at each client, at each for the sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fedcore.federation.context import Round
from fedcore.federation.data import Client
from fedcore.federation.journal import Receipt
from fedcore.federation.methods import method_of
from fedcore.federation.private_run import PrivateRun
from fedcore.lora import Method
from fedcore.privacy.terms import WHOLE, Terms
from fedcore.updates import Update


class PrivateRound(Round):
    """One round of an arm whose results are noised."""

    @property
    def method(self) -> Method:
        """The arm's, which [privacy] asks for."""
        method = method_of(self.config, self.arm)
        assert method is not None
        return method

    @property
    def private(self) -> PrivateRun:
        """What makes the run private."""
        assert self.federation.private is not None
        return self.federation.private

    @property
    def label(self) -> str:
        """Names this release."""
        return self.private.label(self.arm.name, self.number)

    def terms(self, updates: list[Update]) -> Terms:
        """What the method releases of adapters."""
        both = self.private.settings.both_factors
        return Terms.of_updates(updates, self.start.adapter, self.method, self.number, self.start.fixed, both)

    def row(self, update: Update) -> np.ndarray:
        """One client's term, flat fp32."""
        terms = self.terms([update])
        return np.asarray(terms.rows(0, 1, list(terms.sizes))[0], np.float32)

    @property
    def numbers(self) -> int:
        """Numbers of a term."""
        return sum(self.terms([]).sizes.values())

    def moved(self, mean: np.ndarray) -> Update:
        """The adapter that a released mean of terms makes of the round's."""
        return self.terms([]).released({WHOLE: np.asarray(mean, np.float32)})


@dataclass(frozen=True)
class Released:
    """What a round may publish and what not. The mean is the noisy one, as an adapter; None for a void round."""

    mean: Update | None
    public: dict[str, Any]
    private: dict[str, Any]
    secure: dict[str, Any] | None = None


class Mode(Protocol):
    """Clients make messages, the server releases what is in them."""

    def message(self, client: Client, update: Update) -> bytes:
        """What a client sends of its adapter."""
        ...

    def release(self, receipts: dict[str, Receipt]) -> Released:
        """Charge, then release. Raises PrivacyBudgetError, with nothing charged or released."""
        ...

    @property
    def message_bytes(self) -> int:
        """Bytes of tensors in any message."""
        ...
