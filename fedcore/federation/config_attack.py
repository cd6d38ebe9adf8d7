"""The table of an attack in the configuration file."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pydantic import Field, model_validator

from fedcore.attacks import ATTACKS
from fedcore.attacks import Attack as AttackRule
from fedcore.errors import ConfigError
from fedcore.federation.section import PositiveFloat, PositiveInt, Section, as_fault


class Attack(Section):
    """arms.attack: the last `clients` clients send poisoned updates, crafted from all honest ones of the round."""

    kind: Literal["sign_flip", "alie", "ipm", "mimic", "gaussian", "inf", "min_max", "min_sum"] = Field(
        default="sign_flip", description="which attack; sign_flip is the client's own change, reversed and scaled"
    )
    clients: PositiveInt = Field(default=1, description="how many poison; always the last ones")
    scale: PositiveFloat | None = Field(
        default=None, description="sign_flip: factor on the reversed change; 1 if absent"
    )
    z: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="alie: standard deviations; if absent the paper's largest, which needs 3 attackers, or 2 of an odd "
        "number of clients, and at least half of all honest",
    )
    epsilon: PositiveFloat | None = Field(
        default=None, description="ipm: factor on the reversed honest mean; 0.5 if absent"
    )
    row: int | None = Field(
        default=None, ge=0, description="mimic: which honest client is copied; the most extreme one if absent"
    )
    sigma: PositiveFloat | None = Field(default=None, description="gaussian: standard deviation; 200 if absent")
    perturbation: Literal["std", "unit", "sign"] | None = Field(
        default=None, description='min_max, min_sum: the direction; "std" if absent'
    )

    def made(self) -> AttackRule:
        """The attack. Raises ConfigError naming a key that it does not take."""
        given = self.model_dump(exclude={"kind", "clients"}, exclude_none=True)
        taken = [field.name for field in dataclasses.fields(ATTACKS[self.kind])]
        for key in given:
            if key not in taken:
                raise ConfigError(f'{key}: not known to kind = "{self.kind}"; it takes {", ".join(taken) or "none"}')
        return ATTACKS[self.kind](**given)

    @model_validator(mode="after")
    def _keys_fit(self) -> Attack:
        as_fault(self.made)
        return self
