"""What a private run spent and what its noise cost: lines for the terminal, a section of the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from fedcore.federation.privacy_plan import Plan
from fedcore.report.collapse import LEAST_GAIN
from fedcore.report.table import Row

_SAMPLING = {
    "none": "every client is in every round",
    "poisson": "each client is in a round by a secret coin, {rate:.3g}",
    "fixed": "a secret sample of {clients} clients is in each round",
}


def lines(plan: Plan, table: Sequence[Row], ledger: Iterable[dict[str, Any]]) -> list[str]:
    """In sentences: ε so far, whom it is for, the noise, where it stopped, which arms learnt nothing, warnings."""
    spent = max((row.epsilon for row in table if row.epsilon is not None), default=0.0)
    sampling = _SAMPLING[plan.sampling].format(rate=plan.sampling_rate, clients=plan.expected_clients)
    if plan.separation is not None:
        sampling = f"each client is in one round of every {plan.separation}"
    share = "" if plan.spend is None else f", {plan.spend:g} of it at most for this run"
    found = [
        f"ε = {spent:.4g} of {plan.epsilon:g} at δ = {plan.delta:g}, for one {plan.unit} of {plan.population} "
        f"({plan.neighbours} neighbours){share}; {sampling}",
        f"{plan.mode} noise for {plan.releases} releases, multiplier {plan.charged:.4g}; clip {plan.clip:g}, noise of "
        f"the mean {plan.noise_of_mean:.3g} times the clip",
    ]
    found += [f"{entry['arm']} stopped before round {entry['round']}: {entry['stopped']}" for entry in _stops(ledger)]
    void = [entry for entry in ledger if "void" in entry.get("privacy", {})]
    found += [f"{entry['arm']} round {entry['round']}: {entry['privacy']['void']}" for entry in void]
    for row in table:
        if row.collapsed:
            found.append(
                f"{row.name}: utility has collapsed: held-out loss is within {100 * LEAST_GAIN:g} % of the base's, or "
                "above it, so that nothing is left of what clients learnt"
            )
    return found + list(plan.notes)


def section(plan: Plan, table: Sequence[Row], ledger: Iterable[dict[str, Any]]) -> str:
    """The same for the page, with a table of the releases."""
    said = "".join(f"<p>{escape(line)}.</p>" for line in lines(plan, table, ledger))
    body = []
    for entry in ledger:
        facts = entry.get("privacy", {})
        if "output" not in facts:
            continue
        error = facts.get("error_of_delta")
        cost = f"{error['a and b']:.3g} (B alone {error['b']:.3g})" if error else "–"
        body.append(
            f'<tr><th scope="row">{escape(entry["arm"])}</th><td>{escape(str(entry["round"]))}</td>'
            f"<td>{escape(str(facts['charge']))}</td>"
            f"<td>{facts['epsilon']:.4g}</td><td>{escape(_clip(facts['clip']))}</td><td>{facts['noise_of_mean']:.3g}</td>"
            f'<td>{cost}</td><td class="text"><code>{escape(facts["inputs"][:16])}</code></td></tr>'
        )
    names = ("arm", "round", "charge", "ε so far", "clip", "noise a number", "error of B·A", "commitment to the inputs")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    caption = (
        "<caption>What was released: ε so far is the population's, other runs' charges included. Who took part, norms "
        "and what was clipped are in the private journal; bytes in this report are of the expected cohort.</caption>"
    )
    table_of = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return said + f'<div class="scroll">{table_of}</div>'


def _clip(clip: Any) -> str:
    if isinstance(clip, dict):
        return f"{min(clip.values()):.3g} to {max(clip.values()):.3g}, by module"
    return f"{clip:.3g}"


def _stops(ledger: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in ledger if "stopped" in entry]
