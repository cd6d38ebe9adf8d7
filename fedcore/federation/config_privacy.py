"""The table of differential privacy in the configuration file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedcore.federation.section import FromList, PositiveFloat, PositiveInt, Section
from fedcore.privacy.limits import LEAST_COUNT_NOISE, MOST_COUNT_NOISE, MOST_EPSILON


class Adaptive(Section):
    """privacy.adaptive: clips that follow a quantile of the clients' norms, at a share of the budget."""

    quantile: float = Field(default=0.5, gt=0, lt=1, description="share of the norms that the clip is to be above")
    learning_rate: PositiveFloat = Field(default=0.2, description="how fast the clip moves")
    count_noise: float | None = Field(
        default=None,
        ge=LEAST_COUNT_NOISE,
        le=MOST_COUNT_NOISE,
        description="noise on a count of clipped clients; expected clients / 20 if absent",
    )


class Privacy(Section):
    """[privacy]: (ε, δ) for all rounds of its arms; fedcore picks the noise and stops before the budget is passed."""

    epsilon: PositiveFloat = Field(
        description="the clients' budget ε: of all rounds of all private arms, of all runs over one budget file",
    )
    delta: float = Field(
        gt=0,
        lt=1,
        description="δ of (ε, δ): what probabilities may differ by beyond the factor e^ε; below 1 / clients, and in "
        "mode distributed above 2^-40 for each round",
    )
    mode: Literal["central", "correlated", "local", "distributed"] = Field(
        default="central",
        description="who adds noise: the server once; the server, and takes part of it back in later rounds; each "
        "client for itself; or each client its share of the sum's",
    )
    clip: PositiveFloat = Field(default=1.0, description="bound on the norm of what a client's change adds to the sum")
    per_module: bool = Field(default=False, description="clip each module's part to clip / sqrt(modules)")
    adaptive: Adaptive | None = Field(default=None, description="let the clip follow a quantile of the norms")
    both_factors: bool = Field(
        default=False, description="with method = 'fedit': clip A and B jointly, though their noises multiply in B · A"
    )
    sampling: Literal["none", "poisson", "fixed"] = Field(
        default="none", description="who takes part in a round: all, each by its own coin, or a sample of one size"
    )
    clients_per_round: PositiveInt | None = Field(
        default=None, description="with sampling: clients expected in a round, the denominator of the mean"
    )
    separation: int | None = Field(
        default=None,
        ge=2,
        description="mode correlated: a client's rounds are so many apart; clients take turns in so many groups",
    )
    neighbours: Literal["add_remove", "replace_one"] | None = Field(
        default=None, description="what is hidden; add_remove, or replace_one where sampling is fixed or mode local"
    )
    arms: Annotated[tuple[str, ...], FromList] | None = Field(
        default=None,
        min_length=1,
        description="the arms that are private; all if absent. Others are to compare with, and show what these hide",
    )
    unit: str = Field(default="client", min_length=1, description="what one record is, in words: whom ε is for")
    fewest_clients: PositiveInt | None = Field(
        default=None, description="mode distributed: fewer messages in a sum void the round; all clients if absent"
    )
    corrupt_clients: int = Field(
        default=0,
        ge=0,
        description="mode distributed: clients in a sum that may leave their noise out, or look themselves; at least "
        "one counts",
    )
    stream: Literal["chacha20", "aes256ctr"] = Field(
        default="chacha20", description="keyed stream of the noise; aes256ctr is faster where processors have AES"
    )
    budget: str | None = Field(
        default=None,
        min_length=1,
        description="file of the population's budget, shared by its runs; the run's own if absent",
    )
    spend: PositiveFloat | None = Field(
        default=None,
        description="ε that this run alone may come to, of a budget shared with others; all that is left if absent",
    )
    sealing_key: str | None = Field(
        default=None,
        min_length=1,
        description="file of 32 random bytes that seal noise keys, best kept elsewhere; made beside the budget if "
        "absent",
    )
    journal_days: PositiveInt = Field(
        default=30, description="days that messages, norms and other private facts of a run are kept"
    )

    @property
    def relation(self) -> Literal["add_remove", "replace_one"]:
        """The neighbour relation that holds."""
        if self.neighbours is not None:
            return self.neighbours
        return "replace_one" if self.sampling == "fixed" or self.mode == "local" else "add_remove"

    def expected_clients(self, clients: int) -> int:
        """The fixed denominator of a mean, for so many clients in all: where they take turns that of the most."""
        return self.clients_per_round or -(-clients // (self.separation or 1))

    @model_validator(mode="after")
    def _fits(self) -> Privacy:
        if self.sampling != "none" and self.clients_per_round is None:
            raise ValueError(
                f'clients_per_round: missing; sampling = "{self.sampling}" needs how many clients a round expects'
            )
        if self.sampling == "none" and self.clients_per_round is not None:
            raise ValueError(
                f'clients_per_round: got {self.clients_per_round} with sampling = "none", in which all clients take '
                'part; set sampling = "poisson"'
            )
        if self.epsilon > MOST_EPSILON:
            raise ValueError(f"epsilon: got {self.epsilon:g}, expected at most {MOST_EPSILON:g}")
        if self.spend is not None and self.spend > self.epsilon:
            raise ValueError(
                f"spend: got {self.spend:g} of epsilon = {self.epsilon:g}, expected at most that: epsilon is the "
                "population's, spend this run's share of it"
            )
        if self.mode != "central":
            self._central_alone()
        if self.mode != "distributed" and (self.fewest_clients is not None or self.corrupt_clients):
            raise ValueError('fewest_clients, corrupt_clients: are of mode = "distributed"; leave them out')
        if (self.separation is None) == (self.mode == "correlated"):
            raise ValueError(
                f"separation: {'missing' if self.separation is None else f'got {self.separation}'} with mode = "
                f'"{self.mode}"; mode = "correlated" alone needs it: rounds from one of a client to its next'
            )
        if self.sampling == "fixed" and self.relation != "replace_one":
            raise ValueError('neighbours: got "add_remove" with sampling = "fixed", expected "replace_one"')
        if self.mode == "local" and self.relation != "replace_one":
            raise ValueError(
                'neighbours: got "add_remove" with mode = "local", expected "replace_one": who sends is seen to take '
                "part, so only what it sends can be hidden"
            )
        return self

    def _central_alone(self) -> None:
        """Refuse what only noise that is new in each round, added by the server, goes with."""
        if self.sampling != "none":
            why = (
                "the noise is made for rounds that are a separation apart, and chance keeps none"
                if self.mode == "correlated"
                else "whoever receives the messages sees who took part, so that a sample hides nobody"
            )
            raise ValueError(f'sampling: got "{self.sampling}" with mode = "{self.mode}", expected "none": {why}')
        if self.per_module or self.adaptive is not None:
            why = (
                "need a clip that changes, and one round's noise takes back another's under one clip"
                if self.mode == "correlated"
                else "need the norms at the server, which it hides"
            )
            raise ValueError(f'per_module, adaptive: with mode = "{self.mode}" {why}; clip flat')
        if self.mode == "correlated" and self.both_factors:
            raise ValueError(
                'both_factors: got true with mode = "correlated", whose noises cancel in a sum, not in B · A; use a '
                "method that sends one factor, such as ffa_lora or fedsb"
            )
