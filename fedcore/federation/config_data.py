"""[data] and [partition]: the texts, and which client holds which."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fedcore.federation.section import PositiveFloat, PositiveInt, Section

#: the data.source that needs no file and brings its own labels
BUILT_IN_TEXTS = "python-documentation"


class Data(Section):
    """[data]: the texts. Held-out ones are seen by nobody: neither by the clients, the server nor [model.pretrain]."""

    source: str = Field(
        default=BUILT_IN_TEXTS, description="a .jsonl path, a `datasets` name, or 'python-documentation'"
    )
    text: str = Field(default="text", description="the column that holds the text (.jsonl and `datasets`)")
    split: str = Field(default="train", description="the split to read (`datasets`)")
    held_out: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="chance of each text, by its own hash, to be kept for evaluation: a fraction in expectation; "
        "copies stay together",
    )
    held_out_limit: PositiveInt = Field(
        default=256,
        description="at most this many held-out texts are scored; the rest are used by nobody but questions",
    )
    questions: int = Field(
        default=100, ge=0, description="ranking questions, made from held-out texts; chance is 1 in 4"
    )


class Partition(Section):
    """[partition]: which client holds which texts."""

    kind: Literal["iid", "dirichlet", "column"] = Field(default="iid", description="how texts are dealt to clients")
    clients: PositiveInt | None = Field(
        default=None, description="number of clients (8 if absent); with 'column' one per value"
    )
    alpha: PositiveFloat = Field(default=0.5, description="Dirichlet concentration: small is more skewed ('dirichlet')")
    column: str | None = Field(default=None, description="the column with the label ('dirichlet', 'column')")
    min_examples: PositiveInt = Field(default=16, description="fewest texts a client may hold")

    @model_validator(mode="after")
    def _column_counts(self) -> Partition:
        if self.kind == "column" and self.clients is not None:
            raise ValueError("kind = 'column' makes one client per value of the column; leave out clients")
        # a file that was written whole has every default
        if self.kind != "dirichlet" and self.alpha != type(self).model_fields["alpha"].default:
            raise ValueError(
                f"got alpha = {self.alpha:g} with kind = {self.kind!r}; set kind = 'dirichlet' or leave it out"
            )
        if self.kind == "iid" and self.column is not None:
            raise ValueError(
                f"got column = {self.column!r} with kind = 'iid'; set kind = 'dirichlet' or 'column', or leave it out"
            )
        return self
