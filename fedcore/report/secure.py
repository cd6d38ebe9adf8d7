"""What hid the clients' messages in a run under secure aggregation: lines for the terminal, a section of the page."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any


def lines(ledger: Iterable[dict[str, Any]]) -> list[str]:
    """In sentences, an arm each: how few honest clients a sum may have, against whom, what is void, liars, warnings."""
    found = []
    for arm, entries in _by_arm(ledger).items():
        done = [entry["secure"] for entry in entries if "adversary" in entry["secure"]]
        if any(facts["sums"] for facts in done):
            found.append(f"{arm}: {_hidden(done[-1])}")
        for entry in entries:
            where, facts = f"{arm} round {entry['round']}", entry["secure"]
            learned = len(facts.get("sums", ()))
            if "void" in facts:
                seen = (
                    f"{learned} sums of groups were learned and left aside"
                    if learned
                    else "nothing was learned beyond a sum that the guarantee allows"
                )
                found.append(f"{where}: void, {seen}: {facts['void']}")
            elif "void_groups" in facts:
                lost = len(facts["void_groups"])
                found.append(
                    f"{where}: {lost} of {facts['groups']} groups void, the rule took the others' sums: "
                    f"{facts['void_groups'][0]}"
                )
            found += [f"{where}: {name!r} lied: {why}" for name, why in facts.get("liars", {}).items()]
        found += sorted({f"{arm}: warning: {note}" for one in done for note in one.get("warnings", [])})
    return found


def _hidden(facts: dict[str, Any]) -> str:
    """What hides the clients of a round, whom it withstands, and how many of them."""
    grouped, malicious = facts.get("groups"), facts["adversary"] == "malicious"
    sums = f"sums over {grouped} groups" if grouped else "one sum a round"
    provided = [] if malicious else ["the server keeps to the protocol"]
    provided.append(_colluding(facts))
    if grouped:
        provided.append(
            "chance made the groups, which were drawn from the seed in the configuration: whoever chose that seed "
            "knowing which clients are corrupt could bring more of them together than a group withstands"
        )
    return (
        f"{sums} modulo 2^{facts['modulus_bits']} under masks from {facts['stream']}, equal to the plain sum of the "
        f"same integers; each hides at least {facts['min_honest']} honest clients, "
        f"{'whatever the server does, ' if malicious else ''}as long as {' and '.join(provided)}"
    )


def _colluding(facts: dict[str, Any]) -> str:
    """How many clients may be with the server; with groups, of those in one of each size."""
    if not any(facts["corrupt"]):
        return "no client is with it"
    of = "of a group of " if facts.get("groups") else "of "
    most = [f"{corrupt} {of}{clients}" for corrupt, clients in zip(facts["corrupt"], facts["clients"], strict=True)]
    return f"at most {' and '.join(most)} clients {'is' if facts['corrupt'] == [1] else 'are'} with it"


def section(ledger: Iterable[dict[str, Any]]) -> str:
    """The same for the page, with a table of the rounds; '' where no arm is secure."""
    body = []
    for entry in (entry for entries in _by_arm(ledger).values() for entry in entries):
        facts = entry["secure"]
        if "adversary" not in facts:
            continue
        survivors = facts.get("survivors")
        counted = "–" if survivors is None else ", ".join(str(len(group)) for group in survivors)
        shares = dict.fromkeys(f"{t} of {k}" for t, k in zip(facts["threshold"], facts["neighbours"], strict=True))
        sums = ", ".join(digest[:16] for digest in facts["sums"])
        liars = ", ".join(facts["liars"]) if "liars" in facts else "–"
        body.append(
            f'<tr><th scope="row">{escape(entry["arm"])}</th><td>{escape(str(entry["round"]))}</td><td>{counted}</td>'
            f'<td>{escape(", ".join(shares))}</td><td class="text">{escape(liars)}</td>'
            f"<td>{facts['bytes_up'] / 1e6:.3g}</td><td>{facts['bytes_down'] / 1e6:.3g}</td>"
            f'<td class="text"><code>{escape(sums)}</code></td></tr>'
        )
    said = "".join(f"<p>{escape(line)}.</p>" for line in lines(ledger))
    names = (
        "arm",
        "round",
        "clients in the sum",
        "shares that unmask",
        "liars",
        "MB up",
        "MB down",
        "SHA-256 of the sum",
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    caption = "<caption>Every sum was compared with the plain sum of the same integers, bit for bit.</caption>"
    table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return said + (f'<div class="scroll">{table}</div>' if body else "")


def _by_arm(ledger: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The entries of secure rounds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in ledger:
        if "secure" in entry:
            found.setdefault(entry["arm"], []).append(entry)
    return found
