"""Why the parameters of a round are what they are, in words."""

from __future__ import annotations

from dataclasses import replace

from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.search import FAILURE, SECURITY


def explained(p: Parameters) -> str:
    """A sentence a line: `Parameters.explain`."""
    n, k, t, found, most = p.clients, p.neighbours, p.threshold, p.chances, p.targets
    who = "all others" if p.complete else f"{k} of {n - 1} others"
    how = ", drawn by the client itself" if p.malicious else ", near it on a random circle"
    held = f"2t = {2 * t} exceeds k + corrupt neighbours" if p.malicious else f"{t} corrupt neighbours would do it"
    lines = [
        f"{n} clients, at most {p.corrupt} of them corrupt and {p.dropout} dropping out, a {p.adversary} server.",
        f"Secrets are shared with {who}{'' if p.complete else how}; any {t} of {k} shares give one.",
        f"False shares are told from true ones where they are at most half of what comes beyond {t}: {(k - t) // 2} of "
        f"{k}, fewer with dropouts.",
        f"Exposure of a client ({held}): {_chance(found.exposed)}; a sum over too few: {_chance(found.apart)}; "
        f"both together at most 2^{most.security:g}.",
        f"A void round with the dropouts expected: {_chance(found.void)}, at most 2^{most.failure:g}.",
        f"Sums are modulo 2^{p.modulus_bits}"
        + (f": {n} clients within ±{p.bound} never wrap." if p.bound else ", as the vectors were made for."),
        f"A sum holds at least {p.min_honest} honest clients, "
        + ("whatever the server does, " if p.malicious else f"since below {p.min_included} clients a round is void, ")
        + (f"as long as at most {p.corrupt} are with it." if p.corrupt else "as long as none is with it."),
    ]
    if more := with_more_honest(p):
        lines.append(
            f"With least_included={more.least_included} it would hold at least {more.min_honest}, and a round would be "
            f"void if more than {p.dropout} dropped out."
        )
    if p.groups > 1:
        lines[5:5] = [
            f"One of {p.groups} groups: over all of them, and with the chance that one has more corrupt members or "
            f"dropouts than it allows for, at most 2^{SECURITY:g} and 2^{FAILURE:g}."
        ]
    return "\n".join(lines)


def with_more_honest(p: Parameters) -> Parameters | None:
    """The same, with no sum of fewer clients than the dropouts expected leave, if more honest ones are certain then.

    No default of `choose`: a round goes on as long as each neighbourhood that is needed keeps its threshold.
    """
    more = replace(p, least_included=max(p.least_included, p.clients - p.dropout))
    return more if more.min_honest > p.min_honest else None


def _chance(log2: float) -> str:
    return "never" if log2 == float("-inf") else f"2^{log2:.1f}"
