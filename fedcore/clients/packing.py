"""Texts to tokens: one stream with the end-of-text token between texts, cut into blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fedcore.errors import ConfigError, ShapeError

#: texts that are tokenised at a time; enough to keep the tokenizer's own threads busy
_CHUNK = 64


def boundary(tokenizer: Any) -> int:
    """The id of the token between texts: the tokenizer's end of text. Raises ConfigError where it has none."""
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"tokenizer {tokenizer.name_or_path}: has no eos_token, expected one to put between texts; set it in the "
            "model's tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text, led by the tokenizer's own start token where it adds one, ended by the boundary."""
    eos = boundary(tokenizer)
    encoded = tokenizer(list(texts), verbose=False, return_attention_mask=False)["input_ids"] if texts else []
    return [ids if ids and ids[-1] == eos else [*ids, eos] for ids in encoded]


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """A prompt's ids as the start of a text: after the tokenizer's start token, or a boundary where it adds none."""
    plain = tokenizer(prompt, verbose=False, add_special_tokens=False)["input_ids"]
    start = (
        [tokenizer.bos_token_id] if tokenizer("", verbose=False)["input_ids"][:1] == [tokenizer.bos_token_id] else []
    )
    return [*(start or [boundary(tokenizer)]), *plain]


def pack(tokenizer: Any, texts: Sequence[str], count: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """(count, length) int64: blocks of the texts in a random order, every text once before any comes again.

    Only as many texts are tokenised as the blocks need. Raises ShapeError where no text holds anything.
    """
    texts = [text for text in texts if text]
    if not texts:
        raise ShapeError("texts: got none with any character, expected at least one")
    stream: list[int] = [boundary(tokenizer)]
    while len(stream) < count * length:
        order = torch.randperm(len(texts), generator=generator).tolist()
        for start in range(0, len(order), _CHUNK):
            for ids in encode(tokenizer, [texts[i] for i in order[start : start + _CHUNK]]):
                stream.extend(ids)
            if len(stream) >= count * length:
                break
    blocks = torch.tensor(stream[: count * length], dtype=torch.int64).view(count, length)
    return blocks[torch.randperm(count, generator=generator)]
