"""The configuration of a federation: every key typed and described, unknown keys refused; see also `config_file`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from fedcore.federation.config_attack import Attack
from fedcore.federation.config_data import BUILT_IN_TEXTS, Data, Partition
from fedcore.federation.config_model import Adapter, Model
from fedcore.federation.config_privacy import Privacy
from fedcore.federation.config_secure import Secure, given, switched
from fedcore.federation.config_server import Server, ServerOptimizer
from fedcore.federation.section import Name, PositiveFloat, PositiveInt, Section
from fedcore.federation.server_optimizer import ServerOptimizer as Optimizer
from fedcore.lora import METHODS


class Run(Section):
    """[run]: what is repeated and where it goes."""

    seed: int = Field(
        default=0,
        ge=0,
        le=2**32 - 1,
        description="seeds partitions, adapters, batches and the built-in base; same seed, same run, but for noise of "
        "[privacy], which is drawn afresh",
    )
    rounds: PositiveInt = Field(default=3, description="federated rounds in each arm")
    output: str | None = Field(default=None, description="run folder; must not exist yet; --output overrides it")
    workers: PositiveInt = Field(
        default=1,
        description="processes that train, so many clients at a time, each with a model of its own beside this one's "
        "and its share of the cores; 1 is this process alone. Cores share the work of a small model badly, so that "
        "clients side by side are done sooner",
    )
    adapter_from: Name | None = Field(
        default=None, description="the arm whose last adapter becomes adapter/; the first arm if absent"
    )


class Training(Section):
    """[training]: what one client does in one round."""

    steps: PositiveInt = Field(default=12, description="optimiser steps per client and round")
    batch_size: PositiveInt = Field(default=16, description="sequences per step")
    sequence_length: int = Field(default=64, ge=2, description="tokens per sequence, in training and evaluation")
    learning_rate: PositiveFloat = Field(default=4e-3, description="AdamW learning rate")
    proximal_mu: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="FedProx: pull towards the global adapter in the arms; 0 is off",
    )


class Message(Section):
    """[message]: how what a client trained travels to the server."""

    format: Literal["float32", "float16", "bfloat16", "int8", "nf4"] | None = Field(
        default=None, description="what each tensor is brought to, with scales for int8 and nf4; as trained if absent"
    )


class Aggregation(Section):
    """[aggregation]: how the server makes one update of many."""

    rule: str = Field(default="mean", description="a rule of fedcore.rules in snake case")
    method: str | None = Field(
        default=None,
        description='a method of fedcore.lora in place of a rule, such as "flexlora": `fedcore plan` lists them',
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="the rule's or method's own parameters, such as { f = 2 }"
    )
    before: list[dict[str, Any]] = Field(
        default_factory=list,
        description='pre-aggregations in order, as in [{ rule = "norm_clipping", max_norm = 1.0 }]',
    )
    space: Literal["delta", "parameters"] = Field(default="delta", description="where distances and means are taken")
    weights: Literal["counts", "equal"] | None = Field(
        default=None, description='weigh clients by their examples, "counts", or alike; "equal" with [privacy]'
    )
    center: Literal["reference", "moved_on"] = Field(
        default="reference",
        description="where centered_clipping starts: the global adapter, or that moved on by the last round's change",
    )
    on_nonfinite: Literal["raise", "exclude"] = Field(
        default="raise", description="what a NaN or Inf from a client leads to"
    )


class Arm(Section):
    """[[arms]]: the same federation once more, with these overrides of [aggregation]."""

    name: Name = Field(description="names the arm in the table and its folder")
    rule: str | None = Field(default=None, description="overrides aggregation.rule")
    method: str | None = Field(default=None, description="overrides aggregation.method, and rule by the mean")
    parameters: dict[str, Any] | None = Field(default=None, description="overrides aggregation.parameters")
    before: list[dict[str, Any]] | None = Field(default=None, description="overrides aggregation.before")
    space: Literal["delta", "parameters"] | None = Field(default=None, description="overrides aggregation.space")
    server: ServerOptimizer | None = Field(
        default=None, description='overrides the optimizer of [server], as in { optimizer = "fedadam" }'
    )
    attack: Attack | None = Field(
        default=None, description='poison some clients, as in { kind = "sign_flip", clients = 2 }'
    )
    secure: Annotated[Secure | Literal[False] | None, BeforeValidator(switched)] = Field(
        default=None, description="overrides [secure]: true, false, or a table"
    )


class Config(Section):
    """A federation, whole."""

    run: Run = Run()
    model: Model
    data: Data = Data()
    partition: Partition = Partition()
    adapter: Adapter = Adapter()
    training: Training = Training()
    message: Message = Message()
    aggregation: Aggregation = Aggregation()
    server: Server = Server()
    privacy: Privacy | None = Field(
        default=None, description="differential privacy, as in { epsilon = 8, delta = 1e-5 }"
    )
    secure: Annotated[Secure | None, BeforeValidator(given)] = Field(
        default=None, description="masks for all arms: true, or a table such as { dropout = 0.1 }"
    )
    arms: list[Arm] = Field(default_factory=lambda: [Arm(name="federated")], min_length=1)
    _folder: Path = PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        """Where its file lies: what names of it that may be paths are relative to."""
        return self._folder

    @model_validator(mode="after")
    def _labels_come_from_somewhere(self) -> Config:
        if self.partition.kind != "iid" and self.partition.column is None and self.data.source != BUILT_IN_TEXTS:
            raise ValueError(
                f"partition.column: missing; kind = {self.partition.kind!r} needs the column with the labels"
            )
        return self

    @model_validator(mode="after")
    def _arms_fit(self) -> Config:
        names = [arm.name for arm in self.arms]
        for reserved in ("base", "local-only"):
            if reserved in names:
                raise ValueError(f"arms: the name {reserved!r} is taken by a row of the table; choose another")
        if len({name.casefold() for name in names}) < len(names):  # folders of disks that know no case
            raise ValueError(f"arms: got {', '.join(names)}, expected a different name for each arm, whatever its case")
        for name in (self.privacy.arms or ()) if self.privacy else ():
            if name not in names:
                raise ValueError(f"privacy.arms: got {name!r}, expected some of {', '.join(names)}")
        if self.run.adapter_from not in (None, *names):
            raise ValueError(f"run.adapter_from: got {self.run.adapter_from!r}, expected one of {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _weights_move_something(self) -> Config:
        methods = dict.fromkeys(self.aggregation_of(arm).method for arm in self.arms)
        own = [name for name in methods if name in METHODS and not METHODS[name].traits.weighted]
        if self.aggregation.weights is not None and len(own) == len(methods):
            raise ValueError(
                f'aggregation.weights: got "{self.aggregation.weights}" with {", ".join(own)}, which weighs clients by '
                "itself; leave it out"
            )
        return self

    def privacy_of(self, arm: Arm) -> Privacy | None:
        """[privacy], where it holds for this arm."""
        held = self.privacy is not None and (self.privacy.arms is None or arm.name in self.privacy.arms)
        return self.privacy if held else None

    @property
    def private(self) -> bool:
        """Whether all arms are, so that nothing shows what [privacy] hides."""
        return all(self.privacy_of(arm) is not None for arm in self.arms)

    def secure_of(self, arm: Arm) -> Secure | None:
        """[secure] as this arm has it."""
        return self.secure if arm.secure is None else arm.secure or None

    def policy_of(self, arm: Arm) -> str | None:
        """The clients' policy for this arm: its own, or that of [secure], masks of its own or none notwithstanding."""
        own = arm.secure.policy if isinstance(arm.secure, Secure) else None
        return own or (None if self.secure is None else self.secure.policy)

    def aggregation_of(self, arm: Arm) -> Aggregation:
        """[aggregation] as this arm has it. A rule or method of its own has nothing of its settings.

        Nor has a method its space and center, which are for rules. In a private run clients weigh the same.
        """
        changes: dict[str, Any] = {"space": arm.space or self.aggregation.space}
        changes["weights"] = self.aggregation.weights or ("counts" if self.privacy_of(arm) is None else "equal")
        if arm.method is not None:
            changes |= {"space": arm.space or "delta", "center": "reference"}
        if arm.rule is not None or arm.method is not None:
            changes |= {"rule": arm.rule or "mean", "method": arm.method}
            changes |= {"parameters": arm.parameters or {}, "before": arm.before or []}
        else:
            changes |= {k: v for k in ("parameters", "before") if (v := getattr(arm, k)) is not None}
        return self.aggregation.model_copy(update=changes)

    def optimizer_of(self, arm: Arm) -> Optimizer | None:
        """The server optimiser that this arm has, if any."""
        return (self.server if arm.server is None else arm.server).made()
