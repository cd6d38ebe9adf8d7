"""The frozen base model: loaded in NF4, with bitsandbytes' trap on CPUs closed and its weights watched by a hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch

from fedcore.clients.hub import line, locate, nowhere, why_not
from fedcore.clients.quiet import quiet
from fedcore.errors import ConfigError, DependencyError, FormatError, LayoutError, MissingError, TrainingError

#: NF4 block: one scale for so many weights (Dettmers et al., 2023, "QLoRA", section 3)
_BLOCK = 64


class Base:
    """A causal language model whose weights never change, its tokenizer, and the hash that proves it.

    model      the transformers model, or the PeftModel around it once an adapter is attached
    tokenizer  its tokenizer
    name       the hub name, or the last part of a local path: an update names its base without telling where it lies
    device     where it computes
    digest     SHA-256 (hex) over the frozen parameters and quantisation states in canonical order
    """

    def __init__(self, model: Any, tokenizer: Any, name: str):
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.device: torch.device = next(model.parameters()).device
        model.requires_grad_(False)
        model.eval()
        # modules, not tensors: bitsandbytes swaps the tensors in its modules; PEFT wraps modules without a copy
        found: dict[int, tuple[str, torch.nn.Module, str]] = {}
        for path, module in model.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                found.setdefault(id(parameter), (f"{path}.{key}" if path else key, module, key))
        self._frozen = sorted(found.values(), key=lambda entry: entry[0])
        self.digest = self._hash()

    @property
    def positions(self) -> int | None:
        """Tokens that one sequence may have; None where the model says no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def vocabulary(self) -> int:
        """Tokens that the model tells apart: the width of its logits."""
        # not the embedding's own count: an adapter on it stands in its place
        return self.model.config.get_text_config().vocab_size

    def check_unchanged(self) -> None:
        """Hash the frozen weights again. Raises TrainingError where the digest is another than after loading."""
        now = self._hash()
        if now != self.digest:
            raise TrainingError(
                f"base {self.name}: its frozen weights hash to {now[:16]}, expected {self.digest[:16]} as after "
                "loading; something wrote to them: load it again and look at what ran since"
            )

    def check_trainable(self) -> None:
        """Raises TrainingError where a layer is repacked for inference: it would pass no gradient, silently."""
        for name, module, key in self._frozen:
            if getattr(getattr(getattr(module, key), "quant_state", None), "packing_format_for_cpu", False):
                raise TrainingError(
                    f"base {self.name}: {name} was repacked for inference by bitsandbytes and passes no gradient; "
                    "load the base with fedcore.clients.load_base, which keeps that path shut"
                )

    def _hash(self) -> str:
        digest = hashlib.sha256()
        for name, module, key in self._frozen:
            parameter = getattr(module, key)
            _feed(digest, name, parameter)
            state = getattr(parameter, "quant_state", None)
            if state is not None:
                for part, value in sorted(state.as_dict(packed=True).items()):
                    _feed(digest, f"{name}.{part}", value)
        return digest.hexdigest()


def _feed(digest: Any, name: str, tensor: torch.Tensor) -> None:
    header = json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
    digest.update(len(header).to_bytes(8, "little") + header)
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def load_base(
    source: str | Path,
    *,
    quantization: Literal["nf4", "none"] = "nf4",
    device: str = "auto",
    folder: str | Path = ".",
) -> Base:
    """Load a causal language model to fine-tune adapters on: a local directory or a hub name.

    quantization  'nf4': linear layers in 4-bit NormalFloat with double quantisation (Dettmers et al., 2023), 0.516
                  bytes a weight; 'none': as they are
    device        'auto' (a GPU if there is one), 'cpu', 'cuda', 'cuda:1', ...
    folder        what a relative path is relative to

    It computes in fp32 on a CPU and in bf16 on a GPU that has it. Embeddings, norms and the head are loaded in that
    dtype and not cast up: `peft.prepare_model_for_kbit_training` would only double them on a GPU (a third of
    Llama-3-8B's memory) and change nothing on a CPU; losses here are taken in fp32 whatever the logits' dtype. A local
    directory, or a hub name whose files are in the hub's cache, is read without asking the hub.

    On a CPU with avx512_bf16, bitsandbytes repacks a layer's weights in its first forward in eval mode; after that no
    gradient passes through it, without an error, and its bits are others. That path is shut here for every layer.

    Raises MissingError (nothing there), FormatError (a damaged file of weights or tokenizer), DependencyError
    (bitsandbytes is missing), ConfigError (an unknown setting), and LayoutError naming the layer whose input size is no
    multiple of 64 on a CPU, where bitsandbytes decodes NF4 wrongly.
    """
    if quantization not in ("nf4", "none"):
        raise ConfigError(f"quantization: got {quantization!r}, expected 'nf4' or 'none'")
    target = _device(device)
    place, local = locate(source, Path(folder))
    dtype = _compute_dtype(target)
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": str(target)}}
    with quiet():
        from transformers import BitsAndBytesConfig

        if quantization == "nf4":
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        try:
            tokenizer, model = _read(source, place, options)
        except MissingError as error:
            if local:
                raise
            if reason := why_not("model", place):
                raise MissingError(_absent(source, Path(folder), error, reason)) from error
            tokenizer, model = _read(source, place, options, download=True)
    _shut_inference_path(model, str(source), target)
    return Base(model, tokenizer, Path(place).resolve().name if local else place)


def _read(source: str | Path, place: str, options: dict[str, Any], *, download: bool = False) -> tuple[Any, Any]:
    """(tokenizer, model) from a directory or the hub's cache, else from the hub where `download` says so."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=not download)
        return tokenizer, AutoModelForCausalLM.from_pretrained(place, local_files_only=not download, **options)
    except ImportError as error:
        raise DependencyError(
            f"model {source}: {line(error)}; pip install 'fedcore[train]'", name=error.name
        ) from error
    except (OSError, ValueError) as error:
        raise MissingError(
            f"model {source}: it cannot be loaded ({line(error)}); expected a directory or hub name of a causal "
            "language model in transformers' format with its tokenizer"
        ) from error
    # safetensors, tokenizers and torch each raise what they like for a damaged file; tokenizers a bare Exception
    except Exception as error:
        raise FormatError(
            f"model {source}: it cannot be loaded ({type(error).__name__}: {line(error)}); fetch it again "
            "if a file of its weights or tokenizer is damaged"
        ) from error


def _absent(source: str | Path, folder: Path, error: MissingError, reason: str) -> str:
    """What to say where the hub's cache does not give a model, and the hub does not for that reason."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with contextlib.suppress(HFValidationError):
        if isinstance(try_to_load_from_cache(str(source), "config.json"), str):
            return f"{error}; it is in the hub's cache in part, and {reason}"
    return f"model {source}: {nowhere(folder / source, reason)}; correct the path or the hub name"


def _device(name: str) -> torch.device:
    try:
        target = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise ConfigError(f"device: got {name!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:<number>'") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: got {name!r} and torch sees no GPU here; use 'auto' or 'cpu'")
    return target


def _compute_dtype(device: torch.device) -> torch.dtype:
    """bf16 on a GPU that computes in it; else fp32, as fp16 would need loss scaling."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def _shut_inference_path(model: torch.nn.Module, source: str, device: torch.device) -> None:
    """Keep bitsandbytes from repacking NF4 weights for inference, and refuse what it decodes wrongly on a CPU."""
    for name, module in model.named_modules():
        # by its attribute, not its class: without bitsandbytes there is none to import
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        # measured with bitsandbytes 0.50.2: 96, 160 or 224 inputs decode with an error of 22 % in place of 9 %
        if device.type == "cpu" and module.in_features % _BLOCK:
            raise LayoutError(
                f"model {source}: layer {name} has {module.in_features} inputs, expected a multiple of {_BLOCK} for "
                "NF4 on a CPU, where bitsandbytes decodes other sizes wrongly; use quantization='none' or a GPU"
            )
        module.support_avx512bf16_for_cpu = False
