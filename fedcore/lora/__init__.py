"""LoRA aggregation over adapters: the geometry of true updates s · B · A, and their combination at LoRA cost."""

from fedcore.lora.delta import Combined, FactorPasses, ModuleReport
from fedcore.lora.truncation import Truncated, truncate

__all__ = ["Combined", "FactorPasses", "ModuleReport", "Truncated", "truncate"]
