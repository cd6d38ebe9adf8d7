"""How good the model is on text that it has not seen: loss in nats per token, and likelihood-ranking accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional

from fedcore.clients.base import Base
from fedcore.clients.packing import boundary, encode, encode_prompt
from fedcore.clients.settings import Metrics, Question
from fedcore.errors import ShapeError

#: marks positions that are not scored
_IGNORED = -100
#: bytes of fp32 logits at a time, one sequence at least: 16 of 1,024 tokens over 128k would be 8 GB
_MOST_LOGITS = 1 << 29


def evaluate(
    base: Base,
    texts: Sequence[str],
    questions: Sequence[Question],
    *,
    batch_size: int = 32,
    sequence_length: int = 64,
) -> Metrics:
    """Loss and perplexity on `texts`, ranking accuracy on `questions`, of the base and the adapter on it, if any.

    The texts form one stream with the end-of-text token between; it is cut so that every token but the first is
    predicted exactly once, from at most sequence_length - 1 tokens before it. A question counts as right where its own
    answer has the highest score (see `score`); ties count as wrong. Sums are fp64 of fp32 terms. At most batch_size
    sequences are taken at once, fewer where their logits are large. Leaves the model in the mode it was in. Raises
    ShapeError where there is no text.
    """
    if not any(texts):
        raise ShapeError(f"evaluation: got {len(texts)} texts with nothing in them, expected held-out text")
    training = base.model.training
    base.model.eval()
    try:
        loss = _loss(base, texts, batch_size, sequence_length)
        accuracy = _accuracy(base, questions, batch_size) if questions else None
    finally:
        base.model.train(training)
    return Metrics(loss, math.exp(loss) if loss < 700 else math.inf, accuracy)


def score(base: Base, questions: Sequence[Question], *, batch_size: int = 32) -> list[list[float]]:
    """How much a question's prompt raises each of its answers, in nats per token of the answer.

    That is the mean log-likelihood of its tokens given the prompt, less the same at the start of a text: the pointwise
    mutual information of prompt and answer (Holtzman et al., 2021, "Surface Form Competition"). An answer that is
    likely anywhere gains nothing from that, and the mean keeps length out of it.
    """
    sequences: list[tuple[list[int], int]] = []
    for question in questions:
        answers = base.tokenizer(list(question.answers), verbose=False, add_special_tokens=False)["input_ids"]
        for prompt in (question.prompt, ""):
            start = encode_prompt(base.tokenizer, prompt)
            sequences += [(start + answer, len(answer)) for answer in answers]
    values = iter(_means(base, sequences, batch_size))
    result = []
    for question in questions:
        given, alone = ([next(values) for _ in question.answers] for _ in range(2))
        result.append([x - y for x, y in zip(given, alone, strict=True)])
    return result


def _means(base: Base, sequences: Sequence[tuple[list[int], int]], batch_size: int) -> list[float]:
    """Mean log-likelihood of the last `scored` tokens of each (ids, scored); what is too long loses its start."""
    limit = base.positions or 1 << 30
    sequences = [(ids[-limit:], min(scored, limit - 1)) for ids, scored in sequences]
    means = [0.0] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i][0]), i))  # little padding
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for i, (total, count) in zip(chosen, _likelihoods(base, [sequences[i] for i in chosen]), strict=True):
            means[i] = total / max(count, 1)
    return means


def _accuracy(base: Base, questions: Sequence[Question], batch_size: int) -> float:
    right = 0
    for question, values in zip(questions, score(base, questions, batch_size=batch_size), strict=True):
        others = [value for i, value in enumerate(values) if i != question.correct]
        right += all(values[question.correct] > other for other in others)
    return right / len(questions)


def _loss(base: Base, texts: Sequence[str], batch_size: int, length: int) -> float:
    stream = [boundary(base.tokenizer)]
    for ids in encode(base.tokenizer, [text for text in texts if text]):
        stream.extend(ids)
    # neighbours share a token: the last one of a block is predicted there and only read in the next
    blocks = [stream[start : start + length] for start in range(0, len(stream) - 1, length - 1)]
    total, count = 0.0, 0
    for start in range(0, len(blocks), batch_size):
        for value, tokens in _likelihoods(
            base, [(block, len(block) - 1) for block in blocks[start : start + batch_size]]
        ):
            total, count = total - value, count + tokens
    return total / count


def _likelihoods(base: Base, sequences: Sequence[tuple[list[int], int]]) -> Iterator[tuple[float, int]]:
    """(log-likelihood in nats, tokens) of the last `scored` tokens of each (ids, scored); few at once if large."""
    width = max(len(ids) for ids, _ in sequences)
    rows = max(1, _MOST_LOGITS // (width * base.vocabulary * 4))
    for start in range(0, len(sequences), rows):
        yield from _part(base, sequences[start : start + rows])


def _part(base: Base, sequences: Sequence[tuple[list[int], int]]) -> Iterator[tuple[float, int]]:
    """`_likelihoods` of sequences that are taken at once.

    Padding goes to the right, where a causal model never looks back at it, so no mask is needed.
    """
    width = max(len(ids) for ids, _ in sequences)
    inputs = torch.full((len(sequences), width), boundary(base.tokenizer), dtype=torch.int64)
    targets = torch.full((len(sequences), width), _IGNORED, dtype=torch.int64)
    for row, (ids, scored) in enumerate(sequences):
        inputs[row, : len(ids)] = torch.tensor(ids)
        targets[row, len(ids) - scored : len(ids)] = torch.tensor(ids[len(ids) - scored :], dtype=torch.int64)
    with torch.no_grad():  # not inference_mode: what a layer caches meanwhile must still serve in training
        logits: Any = base.model(input_ids=inputs.to(base.device), use_cache=False).logits[:, :-1]
        losses = functional.cross_entropy(
            logits.flatten(0, 1).float(),
            targets[:, 1:].flatten().to(base.device),
            ignore_index=_IGNORED,
            reduction="none",
        )
        sums = losses.view(len(sequences), -1).double().sum(1).cpu().tolist()
    for (_, scored), value in zip(sequences, sums, strict=True):
        yield -value, scored
