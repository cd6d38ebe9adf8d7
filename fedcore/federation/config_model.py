"""[model], [model.pretrain] and [adapter]: the frozen base, and the adapter on it that is federated."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedcore.federation.section import FromList, PositiveFloat, PositiveInt, Section


class Pretrain(Section):
    """[model.pretrain]: make a small base model from texts of this run (DiLoCo over silos), cached for the next run."""

    label: str | None = Field(
        default=None, description="texts with this label make the base and go to no client; all texts if absent"
    )

    vocabulary: int = Field(default=1024, ge=300, description="byte-level BPE tokens")
    hidden: int = Field(default=128, ge=64, multiple_of=64, description="model width; NF4 wants a multiple of 64")
    layers: PositiveInt = Field(default=2, description="decoder layers")
    heads: PositiveInt = Field(default=4, description="attention heads; divides hidden")
    intermediate: int = Field(
        default=320, ge=64, multiple_of=64, description="width of the feed-forward layer; a multiple of 64"
    )
    silos: int = Field(
        default=4,
        ge=1,
        le=64,
        description="silos of the pre-training; labels are dealt to them, or texts where there is one label",
    )
    rounds: PositiveInt = Field(default=12, description="outer steps")
    local_steps: PositiveInt = Field(default=80, description="inner AdamW steps of each silo per round")
    batch_size: PositiveInt = Field(default=4, description="sequences per step")
    sequence_length: int = Field(default=64, ge=8, description="tokens per sequence")
    learning_rate: PositiveFloat = Field(default=4e-3, description="inner peak learning rate")
    outer_learning_rate: PositiveFloat = Field(default=0.7, description="outer Nesterov learning rate")
    outer_momentum: float = Field(default=0.6, ge=0, lt=1, description="outer Nesterov momentum")

    @model_validator(mode="after")
    def _heads_divide(self) -> Pretrain:
        if self.hidden % self.heads:
            raise ValueError(f"hidden = {self.hidden} is not a multiple of heads = {self.heads}; change one")
        if self.hidden // self.heads % 2:
            raise ValueError(
                f"hidden = {self.hidden} over heads = {self.heads} is odd; position encoding needs it even; change one"
            )
        return self


class Model(Section):
    """[model]: the frozen base, either `source` or [model.pretrain]."""

    source: str | None = Field(default=None, description="a local path or a hub name of a causal language model")
    pretrain: Pretrain | None = Field(default=None, description="make a small base instead of loading one")
    quantization: Literal["nf4", "none"] = Field(default="nf4", description="how the frozen base is held")
    device: str = Field(default="auto", description="'auto', 'cpu', 'cuda', 'cuda:1', ...")

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if (self.source is None) == (self.pretrain is None):
            raise ValueError('needs exactly one of source = "..." (path or hub name) and [model.pretrain]')
        return self


class Adapter(Section):
    """[adapter]: the LoRA adapter that is federated."""

    rank: PositiveInt = Field(default=8, description="LoRA rank")
    ranks: Annotated[tuple[PositiveInt, ...], FromList] | None = Field(
        default=None, min_length=1, description="in place of rank: the clients' ranks in turn, as in [4, 8, 16]"
    )
    alpha: PositiveFloat = Field(default=16.0, description="scale is alpha / rank, or alpha / sqrt(rank) with rslora")
    target_modules: str | Annotated[tuple[str, ...], FromList] = Field(
        default="all-linear", description="'all-linear' or a list of module names"
    )
    rslora: bool = Field(default=False, description="rank-stabilised scale")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapter's input")

    @model_validator(mode="after")
    def _one_way_to_say_ranks(self) -> Adapter:
        # a file that was written whole has every default
        if self.ranks is not None and self.rank != type(self).model_fields["rank"].default:
            raise ValueError(
                f"got rank = {self.rank} and ranks = {list(self.ranks)}, which is in its place; leave out one"
            )
        return self

    @property
    def each_rank(self) -> tuple[int, ...]:
        """The clients' ranks in turn."""
        return self.ranks or (self.rank,)

    @property
    def highest_rank(self) -> int:
        """The rank of the initial adapter."""
        return max(self.each_rank)

    @property
    def mixed(self) -> bool:
        """Whether ranks differ from client to client."""
        return len(set(self.each_rank)) > 1

    def scale(self, rank: int) -> float:
        """The scale of an adapter of that rank."""
        return self.alpha / (math.sqrt(rank) if self.rslora else rank)
