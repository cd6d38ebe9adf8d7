"""What clients send: Layout, Update and Cohort; safetensors bytes and PEFT directories in and out."""

from fedcore.updates.cohort import Cohort
from fedcore.updates.layout import Layout
from fedcore.updates.pairs import LoraPair
from fedcore.updates.update import Update

__all__ = ["Cohort", "Layout", "LoraPair", "Update"]
