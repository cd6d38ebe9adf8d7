"""A base model made on the spot: byte-level BPE, a small Llama, federated pre-training by DiLoCo.

DiLoCo (Douillard et al., 2023, "DiLoCo: Distributed Low-Communication Training of Language Models", algorithm 1): every
silo makes some AdamW steps from the global weights; the mean of global minus local weights is the gradient of an outer
Nesterov step. The mean is fedcore's own weighted sum. The budget is in tokens, so a run repeats whatever the machine's
speed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fedcore import ops
from fedcore.clients.packing import pack
from fedcore.clients.quiet import quiet
from fedcore.clients.seeding import seeded
from fedcore.clients.settings import PretrainingSettings, Progress
from fedcore.clients.training import next_token_loss
from fedcore.clients.workers import Call, Workers
from fedcore.errors import ConfigError, ExistsError, FormatError, ShapeError, TrainingError
from fedcore.updates.atomic import new_directory
from fedcore.updates.file_lock import locked_beside
from fedcore.updates.header import json_object

_END = "<|endoftext|>"
_KEY_FILE = "fedcore.json"
_POSITIONS = 1024
_WARMUP = 0.05


def make_base(
    directory: str | Path,
    silos: dict[str, list[str]],
    settings: PretrainingSettings,
    seed: int,
    progress: Progress | None = None,
    workers: Workers | None = None,
) -> Path:
    """Make a base model from the texts of `silos` (name -> texts); returns the directory, which transformers loads.

    A directory that was made from the same settings, seed, texts and library versions is returned at once; one made
    from others is replaced; one that fedcore did not make is refused. It is written beside and renamed, so it is whole
    or not there, and of two processes that make one base the first one's stays. The same input gives the same weights
    on one machine with one number of torch threads (which fedcore.json notes). `workers` train silos side by side, with
    fewer threads each; a base that others made stays. progress("pretraining", round, rounds, loss=mean inner loss,
    tokens=so far).

    Raises ShapeError (no silo, or one without text), ConfigError (settings that do not fit), TrainingError (a loss that
    is not finite), ExistsError, StorageError.
    """
    directory = Path(directory)
    _check(silos, settings)
    key = cache_key(silos, settings, seed)
    if _made_from(directory, key):
        return directory
    if directory.exists() and not (directory / _KEY_FILE).is_file():
        raise ExistsError(
            f"{directory}: exists and was not made by fedcore; give another directory or remove it", filename=directory
        )
    with quiet():
        tokenizer = _tokenizer([text for name in sorted(silos) for text in silos[name]], settings.vocabulary)
        with seeded(seed):
            model = _model(tokenizer, settings)
        _diloco(model, tokenizer, silos, settings, seed, progress, workers)
        threads = min(torch.get_num_threads(), workers.threads if workers else 1 << 30)
        _write(directory, model, tokenizer, key, threads)
    return directory


def cache_key(silos: dict[str, list[str]], settings: PretrainingSettings, seed: int) -> dict[str, Any]:
    """What decides the weights, JSON-able: settings, seed, SHA-256 of the silos' texts, versions of the libraries."""
    import tokenizers
    import transformers

    digest = hashlib.sha256(json.dumps(silos, sort_keys=True).encode()).hexdigest()
    versions = {module.__name__: str(module.__version__) for module in (torch, transformers, tokenizers)}
    return {"settings": asdict(settings), "seed": seed, "text": digest, "versions": versions}


def _check(silos: dict[str, list[str]], settings: PretrainingSettings) -> None:
    if not silos:
        raise ShapeError("pre-training: got no silo, expected at least one")
    for name, texts in silos.items():
        if not any(texts):
            raise ShapeError(f"pre-training: silo {name} has no text, expected some; leave it out or give it texts")
    if settings.vocabulary < 257:
        raise ConfigError(
            f"pre-training: vocabulary is {settings.vocabulary}, expected at least 257 (256 bytes and the end of text)"
        )
    if settings.hidden % settings.heads or (settings.hidden // settings.heads) % 2:
        raise ConfigError(
            f"pre-training: hidden {settings.hidden} over {settings.heads} heads, expected an even size for each head"
        )


def _made_from(directory: Path, key: dict[str, Any]) -> bool:
    """Whether a directory is a whole base made from `key`."""
    try:
        found = json_object((directory / _KEY_FILE).read_bytes(), _KEY_FILE)
    except (OSError, FormatError):
        return False
    return {name: found.get(name) for name in key} == key


def _tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """Byte-level BPE (Radford et al., 2019), trained on all texts: what silos agree on before the first round."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END, pad_token=_END, model_max_length=_POSITIONS, padding_side="right"
    )


def _model(tokenizer: Any, settings: PretrainingSettings) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=max(_POSITIONS, settings.sequence_length),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def _diloco(
    model: torch.nn.Module,
    tokenizer: Any,
    silos: dict[str, list[str]],
    settings: PretrainingSettings,
    seed: int,
    progress: Progress | None,
    workers: Workers | None = None,
) -> None:
    """Train `model` in place, round by round; each silo keeps its inner optimiser's moments, only weights travel."""
    total = settings.rounds * settings.local_steps
    batches: list[torch.Tensor] = []
    moments: list[Any] = []
    for position, name in enumerate(sorted(silos)):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + position)
        blocks = pack(tokenizer, silos[name], total * settings.batch_size, settings.sequence_length, generator)
        batches.append(
            blocks.view(settings.rounds, settings.local_steps, settings.batch_size, settings.sequence_length)
        )
        moments.append(None)
    weights = torch.nn.Parameter(parameters_to_vector(model.parameters()).detach().clone())
    momentum = settings.outer_momentum
    outer = torch.optim.SGD([weights], lr=settings.outer_learning_rate, momentum=momentum, nesterov=momentum > 0)
    model.train()
    for done in range(settings.rounds):
        start, changes, losses = weights.detach().clone(), [], []
        calls = (
            partial(_inner, model, start, batches[silo][done], moments[silo], done, settings)
            for silo in range(len(batches))
        )
        answers: Iterator[Call] = calls if workers is None else workers.each(calls)
        for silo, answer in enumerate(answers):
            loss, moments[silo], end = answer()
            if not math.isfinite(loss):
                raise TrainingError(
                    f"pre-training: the loss of {sorted(silos)[silo]} in round {done + 1} is {loss}, expected a "
                    f"finite one; lower learning_rate ({settings.learning_rate:g}) or outer_learning_rate"
                )
            changes.append((start - end).numpy())
            losses.append(loss)
        mean = ops.weighted_sum(changes, np.ones(len(changes), np.float32), divisor=len(changes))
        weights.grad = torch.from_numpy(np.asarray(mean))
        outer.step()
        if progress is not None:
            tokens = (done + 1) * len(batches) * batches[0][0].numel()
            progress("pretraining", done + 1, settings.rounds, loss=sum(losses) / len(losses), tokens=tokens)
    vector_to_parameters(weights.detach().clone(), model.parameters())
    model.eval()


def _inner(
    model: torch.nn.Module,
    start: torch.Tensor,
    batches: torch.Tensor,
    moments: Any,
    done: int,
    settings: PretrainingSettings,
) -> tuple[float, Any, torch.Tensor]:
    """One silo's AdamW steps of one round from `start`: (mean loss, the optimiser's state to keep, weights)."""
    vector_to_parameters(start.clone(), model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    if moments is not None:
        optimizer.load_state_dict(moments)
    total = 0.0
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(done * len(batches) + step, settings.rounds * len(batches))
        optimizer.zero_grad(set_to_none=True)
        loss = next_token_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += float(loss.detach())
    return total / len(batches), optimizer.state_dict(), parameters_to_vector(model.parameters()).detach()


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over the first steps, then a cosine down to a tenth."""
    warmup = max(1, round(_WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _write(directory: Path, model: Any, tokenizer: Any, key: dict[str, Any], threads: int) -> None:
    """Beside, then renamed: a reader sees the old directory, none, or the new one whole.

    Where another process was first with the same base, that one stays: it may be being read.
    """
    with locked_beside(directory):
        if _made_from(directory, key):
            return
        with new_directory(directory, replace=True) as beside:
            model.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
            made = {**key, "torch_threads": threads}
            (beside / _KEY_FILE).write_text(json.dumps(made, indent=2, sort_keys=True) + "\n", encoding="utf-8")
