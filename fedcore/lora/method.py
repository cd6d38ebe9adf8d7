"""A LoRA aggregation method: adapters of one round in, what clients start the next round from out.

A client's model is W + side + s · B · A: the base, which is never touched, what earlier rounds left beside the adapter
(a side adapter, at higher precision than a quantised base), and the adapter that it trains. The target of a round is
what the mean of the clients' models holds, T = side + Σ p_i s_i B_i A_i; a method says how clients hold it next.

Another method is one more frozen dataclass with its `traits` and a `_module` that works on one module's factors in
fp64. It never touches the base: folding into quantised weights loses what is smaller than a quantisation step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fedcore.errors import LayoutError, RuleError, WeightError
from fedcore.lora.assembly import Aggregated, as_sent, assemble
from fedcore.lora.cohort import Clients, check_alike, read_part
from fedcore.lora.messages import factor_mean, factor_message
from fedcore.lora.module import Held, Module, check_stands
from fedcore.lora.residual import module_report
from fedcore.lora.stacks import check_factors
from fedcore.lora.traits import Factors, Traits
from fedcore.numbers import shown, whole
from fedcore.rules.coefficients import round_coefficients
from fedcore.rules.rule import check_weights
from fedcore.updates import Cohort, LoraPair, Update
from fedcore.updates.bases import check_same_base
from fedcore.updates.opening import opened, opened_all
from fedcore.updates.taken import begun_by, check_same_rest
from fedcore.updates.weights import weights_by_id


class Method:
    """A LoRA aggregation method. Subclasses are frozen dataclasses with `traits` and `_module`."""

    traits: ClassVar[Traits]
    #: what trains, travels up and travels down in turn: round 1 is the first entry, and so on around
    cycle: ClassVar[tuple[Factors, ...]] = (("a", "b"),)
    #: what travels down where it is not what trained
    down: ClassVar[Factors | None] = None

    def trains(self, number: int = 1) -> Factors:
        """What clients train in round `number`, from 1; the rest is frozen."""
        return self.cycle[(number - 1) % len(self.cycle)]

    def sends(self, number: int = 1) -> Factors:
        """What travels up in that round."""
        return self.trains(number)

    def receives(self, number: int = 1) -> Factors:
        """What travels down after that round, beside the side adapter."""
        return self.sends(number) if self.down is None else self.down

    def traffic(self, pair: LoraPair, itemsize: int, number: int = 1, rank: int | None = None) -> tuple[int, int]:
        """(bytes up, bytes down) of one module at a client with this pair, the side adapter aside.

        rank   the global adapter's; None: the pair's
        """
        sizes = {"a": pair.rank * pair.d_in, "b": pair.rank * pair.d_out, "core": pair.rank**2}
        up = sum(sizes[factor] for factor in self.sends(number))
        return itemsize * up, itemsize * sum(sizes[factor] for factor in self.receives(number))

    def aggregate(
        self,
        updates: Iterable[Update | str | os.PathLike[str]],
        weights: Mapping[str, float] | npt.ArrayLike | None = None,
        reference: Update | str | os.PathLike[str] | None = None,
        *,
        side: Update | str | os.PathLike[str] | None = None,
        number: int = 1,
    ) -> Aggregated:
        """Aggregate the adapters of one round.

        updates    of one base, with distinct client_ids; paths are opened by `Update.open`. All factors, whatever
                   travelled: what was frozen is as the client got it
        weights    client_id -> weight, or one number for each update; None takes their num_examples. A method without
                   traits.weighted takes none
        reference  the adapter that clients started from, or its path; methods with traits.reference need it. A client
                   that lacks a module counts with it there, and a module that no client has stays as it is in it
        side       what lies beside the adapter already, as an earlier `Aggregated.side` gave it, or its path
        number     the round, from 1

        All sums are in fp64, rounded once to the clients' dtype; side adapters are fp32. Means of factors are
        `ops.weighted_sum`. Raises LayoutError, NonFiniteError, RuleError, WeightError, ShapeError and RangeError, each
        naming the client, tensor or module.
        """
        number = whole("number", number, 1, of=self.traits.name, error=RuleError)
        reference = None if reference is None else opened(reference, "reference")
        side = None if side is None else opened(side, "side")
        clients = self._clients(updates, weights, reference, side)
        begun = begun_by(clients.cohort)
        held: dict[str, Held] = {}
        modules: dict[str, dict[str, Any]] = {}
        for name, pair in clients.modules.items():
            parts = tuple(clients.part(row, name) for row in range(len(clients.cohort)))
            known = None if reference is None else read_part(reference, name, -1, "the reference")
            beside = None if side is None else read_part(side, name, -1, "the side adapter")
            module = Module(name, parts, clients, pair.d_out, pair.d_in, number, known, beside)
            found = held[name] = as_sent(module, self._module(module) if module.present else self._untrained(module))
            if begun is not None:
                check_stands(repr(self), name, found, pair, begun)
            modules[name] = module_report(module, found)
        return assemble(
            repr(self), self.traits, partial(self.traffic, number=number), clients, held, side, number, modules
        )

    def message(self, update: Update, start: Update, number: int = 1) -> dict[str, np.ndarray]:
        """What one client sends in round `number` where the server sees sums alone: fp32 arrays by name.

        Clients multiply it by their weight; the sum over clients goes to `finish`.

        update   the client's adapter after training
        start    the adapter that the round started from; of Fed-SB the fixed factors

        Raises RuleError for a method that is not linear in what clients send, LayoutError naming what does not fit the
        start or was to stay frozen, NonFiniteError for NaN and Inf, and RangeError for what fp32 cannot hold.
        """
        self._check_linear()
        return factor_message(self, update, start, number)

    def finish(
        self,
        sums: Mapping[str, np.ndarray],
        weight: float,
        start: Update,
        *,
        side: Update | None = None,
        number: int = 1,
    ) -> tuple[Update, Update | None]:
        """(the next adapter, what lies beside it) from sums of messages alone, as `aggregate` makes them.

        sums     name -> Σ w_i m_i over the clients' messages
        weight   Σ w_i
        start    as clients had it for their messages
        side     what lies beside the adapter already

        Raises RuleError, LayoutError, WeightError and NonFiniteError naming the sum that is missing or wrong.
        """
        self._check_linear()
        result = self.aggregate(
            [factor_mean(self, sums, weight, start, number)], [1.0], start, side=side, number=number
        )
        return result.update, result.side

    def _check_linear(self) -> None:
        if not self.traits.linear:
            raise RuleError(f"{self.traits.name}: needs each client's own factors, a sum of messages does not do")

    def _module(self, module: Module) -> Held:
        raise TypeError(f"{type(self).__name__}: a method defines `_module`")

    def _untrained(self, module: Module) -> Held:
        """A module that no client trained stays as it was."""
        assert module.reference is not None
        return Held(module.reference, module.side)

    def _clients(self, updates: Any, weights: Any, reference: Update | None, side: Update | None) -> Clients:
        """The cohort, checked. Raises as `aggregate` does."""
        if weights is not None and not self.traits.weighted:
            raise WeightError(f"weights: got some, and {self.traits.name} weighs clients by itself; leave them out")
        given = opened_all(updates)
        cohort, by_id = given if isinstance(given, Cohort) else Cohort(given), weights_by_id(weights, given)
        names = tuple(f"client {shown(client)}" for client in cohort.client_ids)
        for who, update in zip(names, cohort, strict=True):
            if not update.modules:
                raise LayoutError(f"{who}: has no LoRA factors, expected <module>.lora_A.weight and .lora_B.weight")
        share = cohort.num_examples if by_id is None else [by_id[client] for client in cohort.client_ids]
        checked = check_weights(share, names) if self.traits.weighted else np.ones(len(cohort))
        assert checked is not None
        if self.traits.reference and reference is None:
            raise LayoutError(f"reference: missing; {self.traits.name} needs the adapter that clients started from")
        if side is not None and not self.traits.side:
            raise RuleError(
                f"side: got an adapter, and {self.traits.name} leaves none beside the adapter; leave it out"
            )
        extra = [("the reference", reference), ("the side adapter", side)]
        known = [*zip(names, cohort, strict=True), *((who, update) for who, update in extra if update is not None)]
        check_same_base(known)
        check_same_rest((who, update) for who, update in known if update is not side)
        check_factors([update for _, update in known], [who for who, _ in known], len(cohort), dense=len(cohort))
        clients = Clients(cohort, names, round_coefficients(checked), reference)
        if not self.traits.mixed:
            check_alike(clients, self.traits.name)
        return clients
