"""The table of the server in the configuration file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fedcore.federation.section import PositiveFloat, Section, as_fault
from fedcore.federation.server_optimizer import ServerOptimizer as Optimizer
from fedcore.federation.server_optimizer import make_optimizer

#: what a server optimiser may be given; which of these, it says itself
SETTINGS = {"learning_rate", "momentum", "beta1", "beta2", "tau"}


class ServerOptimizer(Section):
    """[server] and arms.server: how the global adapter moves by the aggregate of a round.

    With space = "parameters" or method = "ffa_lora", in private runs after the noise.
    """

    optimizer: Literal["none", "fedavgm", "fedadagrad", "fedadam", "fedyogi"] = Field(
        default="none", description='"none" takes the aggregate as it is'
    )
    learning_rate: PositiveFloat | None = Field(
        default=None, description="server learning rate; 1 for fedavgm, 0.01 for the others"
    )
    momentum: float | None = Field(default=None, ge=0, lt=1, description="of fedavgm; 0.9 if absent")
    beta1: float | None = Field(
        default=None, ge=0, lt=1, description="momentum of the others; 0.9 if absent, 0 for fedadagrad"
    )
    beta2: float | None = Field(
        default=None, ge=0, lt=1, description="decay of the squares in fedadam and fedyogi; 0.99 if absent"
    )
    tau: PositiveFloat | None = Field(
        default=None, description="degree of adaptivity of fedadagrad, fedadam, fedyogi; 0.001 if absent"
    )

    def made(self) -> Optimizer | None:
        """The optimiser, or None. Raises ConfigError naming a setting that it does not take."""
        return make_optimizer(self.optimizer, self.model_dump(include=SETTINGS, exclude_none=True))

    @model_validator(mode="after")
    def _settings_fit(self) -> ServerOptimizer:
        as_fault(self.made)
        return self


class Server(ServerOptimizer):
    """[server]: what the server does besides running the rule."""

    data: str | None = Field(
        default=None,
        description="texts of the server's own, for rules that compare with an update made by the server (fltrust, "
        "monna): a .jsonl path or a `datasets` name, read as [data] says; none may be held out or a "
        "client's",
    )
