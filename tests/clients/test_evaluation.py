"""evaluate: nats per token with every token once, and rankings that mean what they say."""

from __future__ import annotations

import math

import pytest
import torch

from fedcore.clients import Question, evaluate, evaluation
from fedcore.clients.evaluation import score
from fedcore.clients.packing import boundary
from fedcore.errors import ShapeError


def test_loss_is_that_of_transformers_on_one_block(base):
    text = "Return every line, or raise an error."
    ids = torch.tensor([[boundary(base.tokenizer), *base.tokenizer(text)["input_ids"], boundary(base.tokenizer)]])
    with torch.no_grad():
        expected = float(base.model(input_ids=ids, labels=ids).loss)
    metrics = evaluate(base, [text], [], sequence_length=ids.shape[1])
    assert metrics.loss == pytest.approx(expected, rel=1e-6)
    assert metrics.perplexity == pytest.approx(math.exp(expected), rel=1e-5)
    assert metrics.accuracy is None


@pytest.mark.parametrize("length", [2, 7, 32])
def test_every_token_is_predicted_once_whatever_the_blocks(base, texts, length, monkeypatch):
    seen = []
    forward = base.model.forward

    def uniform(*args, **kwargs):
        seen.append(kwargs["input_ids"])
        result = forward(*args, **kwargs)
        result.logits = torch.zeros_like(result.logits)
        return result

    monkeypatch.setattr(base.model, "forward", uniform)
    assert evaluate(base, texts[:9], [], sequence_length=length, batch_size=4).loss == pytest.approx(
        math.log(300), rel=1e-6
    )
    tokens = sum(len(ids) + 1 for ids in base.tokenizer(texts[:9])["input_ids"])
    assert sum(ids.shape[0] for ids in seen) == math.ceil(tokens / (length - 1))


def test_padding_and_batches_change_nothing(base, texts):
    questions = [
        Question("Return", (" every line.", " a", " zzzzzz qqqq vvvvv"), 0),
        Question("Close a", (" file", "?"), 1),
    ]
    alone = evaluate(base, texts, questions, batch_size=1)
    together = evaluate(base, texts, questions, batch_size=16)
    assert together.loss == pytest.approx(alone.loss, rel=1e-6)
    one, many = score(base, questions, batch_size=1), score(base, questions, batch_size=16)
    assert [pytest.approx(values, abs=1e-5) for values in one] == many
    assert together == evaluate(base, texts, questions, batch_size=16)


def mean_log_likelihood(base, prompt, answer):
    start = [boundary(base.tokenizer), *base.tokenizer(prompt)["input_ids"]]
    ids = base.tokenizer(answer)["input_ids"]
    with torch.no_grad():
        likelihoods = base.model(input_ids=torch.tensor([start + ids])).logits[0].log_softmax(-1)
    return sum(float(likelihoods[len(start) - 1 + i, token]) for i, token in enumerate(ids)) / len(ids)


def test_a_score_is_what_the_prompt_adds_to_the_mean_log_likelihood_of_the_answer(base):
    question = Question("Return the", (" file.", " socket or a queue"), 0)
    for answer, value in zip(question.answers, score(base, [question])[0], strict=True):
        expected = mean_log_likelihood(base, question.prompt, answer) - mean_log_likelihood(base, "", answer)
        assert value == pytest.approx(expected, abs=1e-5)


def test_accuracy_counts_the_likeliest_answer_and_no_ties(base, texts):
    answers = (" every line.", " zzqq", " a socket")
    values = score(base, [Question("Read", answers, 0)])[0]
    best = values.index(max(values))
    right = [Question("Read", answers, best)]
    wrong = [Question("Read", answers, (best + 1) % 3)]
    assert evaluate(base, texts, right).accuracy == 1.0
    assert evaluate(base, texts, right + wrong).accuracy == 0.5
    assert evaluate(base, texts, [Question("Read", (" same", " same"), 0)]).accuracy == 0.0


def test_large_logits_are_taken_in_parts_and_change_nothing_but_rounding(base, texts, monkeypatch):
    questions = [Question("Read", (" every line.", " zzqq", " a socket"), 0)]
    expected, scores = evaluate(base, texts, []), score(base, questions)[0]
    sizes = []
    base.model.register_forward_hook(lambda *call: sizes.append(call[-1].logits.numel() * 4))
    limit = 3 * 64 * base.model.get_input_embeddings().num_embeddings * 4
    monkeypatch.setattr(evaluation, "_MOST_LOGITS", limit)
    assert evaluate(base, texts, []).loss == pytest.approx(expected.loss, rel=1e-6)
    assert max(sizes) == limit
    monkeypatch.setattr(evaluation, "_MOST_LOGITS", 1)
    assert score(base, questions)[0] == pytest.approx(scores, abs=1e-5)


def test_a_prompt_longer_than_the_model_takes_loses_its_start(base):
    long = Question("Read every line. " * 400, (" file", " socket"), 0)
    assert all(math.isfinite(value) for value in score(base, [long])[0])


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_kept_and_no_graph_is_built(base, texts, training):
    base.model.train(training)
    modes = []
    base.model.model.register_forward_hook(
        lambda *_: modes.append((base.model.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
    )
    evaluate(base, texts, [])
    assert base.model.training is training
    assert set(modes) == {(False, False, False)}


def test_no_text_is_refused(base):
    with pytest.raises(ShapeError, match="expected held-out text"):
        evaluate(base, [""], [])
