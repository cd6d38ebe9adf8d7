"""LoRA aggregation over adapters: the published methods, the geometry of true updates s · B · A, their combination."""

from fedcore.lora.assembly import Aggregated
from fedcore.lora.corrected import HetLoRA, LoRAFAIR
from fedcore.lora.delta import FactorPasses
from fedcore.lora.factor_means import FedIT, FedSALoRA, FFALoRA, RoLoRA
from fedcore.lora.fixed import FedSB
from fedcore.lora.merge import merge
from fedcore.lora.method import Method
from fedcore.lora.result import Combined, ModuleReport
from fedcore.lora.side import FedExLoRA, FLoRA, FRLoRA
from fedcore.lora.sketch import RandomizedSketch
from fedcore.lora.svd import FedSVD, FlexLoRA, RaFLoRA
from fedcore.lora.traits import Traits

#: every method, by the name that files and command lines give it
METHODS: dict[str, type[Method]] = {
    method.traits.name: method
    for method in (
        FedIT,
        FFALoRA,
        RoLoRA,
        FedSALoRA,
        FLoRA,
        FedExLoRA,
        FlexLoRA,
        HetLoRA,
        LoRAFAIR,
        FRLoRA,
        FedSVD,
        FedSB,
        RaFLoRA,
        RandomizedSketch,
    )
}

__all__ = [
    "METHODS",
    "Aggregated",
    "Combined",
    "FFALoRA",
    "FLoRA",
    "FRLoRA",
    "FactorPasses",
    "FedExLoRA",
    "FedIT",
    "FedSALoRA",
    "FedSB",
    "FedSVD",
    "FlexLoRA",
    "HetLoRA",
    "LoRAFAIR",
    "Method",
    "ModuleReport",
    "RaFLoRA",
    "RandomizedSketch",
    "RoLoRA",
    "Traits",
    "merge",
]
