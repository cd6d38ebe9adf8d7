"""Why the parameters of a round are what they are, in words."""

from __future__ import annotations

from fedcore.privacy.secagg.parameters import Parameters
from fedcore.privacy.secagg.search import FAILURE, SECURITY


def explained(p: Parameters) -> str:
    """A sentence a line: `Parameters.explain`."""
    n, k, t, found = p.clients, p.neighbours, p.threshold, p.chances
    who = "all others" if p.complete else f"{k} of {n - 1} others"
    how = ", drawn by the client itself" if p.malicious else ", near it on a random circle"
    held = f"2t = {2 * t} exceeds k + corrupt neighbours" if p.malicious else f"{t} corrupt neighbours would do it"
    lines = [
        f"{n} clients, at most {p.corrupt} of them corrupt and {p.dropout} dropping out, a {p.adversary} server.",
        f"Secrets are shared with {who}{'' if p.complete else how}; any {t} of {k} shares give one.",
        f"False shares are told from true ones where they are at most half of what comes beyond {t}: {(k - t) // 2} of "
        f"{k}, fewer with dropouts.",
        f"Exposure of a client ({held}): {_chance(found.exposed)}; a sum over too few: {_chance(found.apart)}; "
        f"both together at most 2^{SECURITY:g}.",
        f"A void round with the dropouts expected: {_chance(found.void)}, at most 2^{FAILURE:g}.",
        f"Sums are modulo 2^{p.modulus_bits}"
        + (f": {n} clients within ±{p.bound} never wrap." if p.bound else ", as the vectors were made for."),
        f"A sum holds at least {p.min_honest} honest clients, "
        + ("whatever the server does, " if p.malicious else f"since below {p.min_included} clients a round is void, ")
        + (f"as long as at most {p.corrupt} are with it." if p.corrupt else "as long as none is with it."),
    ]
    return "\n".join(lines)


def _chance(log2: float) -> str:
    return "never" if log2 == float("-inf") else f"2^{log2:.1f}"
