"""What does not go together with central noise, in one line each: what a plan shows and a run refuses."""

from __future__ import annotations

from fedcore.lora import FedIT, FedSVD
from fedcore.lora.method import Method


def refusals(
    *,
    rule: str = "mean",
    before: bool = False,
    method: Method | None = None,
    space: str = "parameters",
    both_factors: bool = False,
) -> list[str]:
    """Why noise on a release would not be private, one line each; none where it is.

    rule          of [aggregation]
    before        whether pre-aggregations come before it
    method        a LoRA method, or None
    space         what a rule runs on: "parameters" or "delta"
    both_factors  whether a joint clip of both factors was asked for, at the cost that their noises multiply
    """
    found = []
    if rule != "mean" or before:
        what = f"rule {rule!r}" if rule != "mean" else "a pre-aggregation"
        found.append(
            f"privacy: {what} chooses its coefficients from the clients' data, so that one client can move the result "
            "further than its clip, and noise that hides a clip hides nothing; use the mean"
        )
    if space == "delta" and method is None:
        found.append(
            "privacy: space 'delta' clips B · A, and noise then goes on factors: (t B, A / t) keeps the product and "
            "moves the factors without bound; use a method that sends one factor: ffa_lora, fedsvd, rolora or fedsb"
        )
    if method is not None and set(method.sends()) == {"a", "b"} and not (both_factors and isinstance(method, FedIT)):
        found.append(
            f"{method.traits.name}: sends both factors, and their noises multiply in B · A; use ffa_lora, fedsvd, "
            "rolora or fedsb, or ask for a joint clip of both with fedit"
        )
    if method is not None and method.traits.exact == "personal":
        found.append(
            f"{method.traits.name}: clients keep factors of their own, and no noise covers how well those do; use "
            "ffa_lora, fedsvd, rolora or fedsb"
        )
    return found


def not_summed(method: Method) -> list[str]:
    """Why noise of one round does not take back another's in what a method makes of its releases; none if it does."""
    if method.sends(1) != method.sends(2):
        why = "sends other factors from round to round, and noise on one takes back none on the other"
    elif isinstance(method, FedSVD):
        why = "turns its factors after each round, so that the next noise is in another basis and takes none back"
    else:
        return []
    return [f"{method.traits.name}: {why}; with correlated noise use ffa_lora or fedsb"]
