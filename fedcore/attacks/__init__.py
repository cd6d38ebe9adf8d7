"""Attacks on a federation, so that its defences can be measured."""

from fedcore.attacks.sign_flip import sign_flip

__all__ = ["sign_flip"]
