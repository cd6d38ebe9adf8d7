"""What hid the clients' messages in a run under secure aggregation: lines for the terminal, a section of the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any


def lines(ledger: Sequence[dict[str, Any]]) -> list[str]:
    """In sentences, an arm each: against whom, how few honest clients a sum may have, what is void, warnings."""
    found = []
    for arm, entries in _by_arm(ledger).items():
        done = [entry["secure"] for entry in entries if "adversary" in entry["secure"]]
        if done:
            last = done[-1]
            sums = f"{len(last['neighbours'])} sums over groups" if len(last["neighbours"]) > 1 else "one sum a round"
            server = (
                "whatever the server does"
                if last["adversary"] == "malicious"
                else "if the server keeps to the protocol"
            )
            found.append(
                f"{arm}: {sums} modulo 2^{last['modulus_bits']} under masks from {last['stream']}, equal to the plain "
                f"sum of the same integers; each hides at least {last['min_honest']} honest clients, {server}"
            )
        found += [
            f"{arm} round {entry['round']}: void, nothing was learned: {entry['secure']['void']}"
            for entry in entries
            if "void" in entry["secure"]
        ]
        found += sorted({f"{arm}: warning: {note}" for one in done for note in one.get("warnings", [])})
    return found


def section(ledger: Sequence[dict[str, Any]]) -> str:
    """The same for the page, with a table of the rounds; '' where no arm is secure."""
    body = []
    for entry in (entry for entries in _by_arm(ledger).values() for entry in entries):
        facts = entry["secure"]
        if "adversary" not in facts:
            continue
        survivors = facts.get("survivors")
        counted = "–" if survivors is None else ", ".join(str(len(group)) for group in survivors)
        sums = ", ".join(digest[:16] for digest in facts["sums"])
        body.append(
            f'<tr><th scope="row">{escape(entry["arm"])}</th><td>{entry["round"]}</td><td>{counted}</td>'
            f"<td>{facts['threshold'][0]} of {facts['neighbours'][0]}</td><td>{facts['bytes_up'] / 1e6:.3g}</td>"
            f"<td>{facts['bytes_down'] / 1e6:.3g}</td>"
            f'<td class="text"><code>{escape(sums)}</code></td></tr>'
        )
    said = "".join(f"<p>{escape(line)}.</p>" for line in lines(ledger))
    names = ("arm", "round", "clients in the sum", "shares that unmask", "MB up", "MB down", "SHA-256 of the sum")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    caption = "<caption>Every sum was compared with the plain sum of the same integers, bit for bit.</caption>"
    table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return said + (f'<div class="scroll">{table}</div>' if body else "")


def _by_arm(ledger: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The entries of secure rounds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in ledger:
        if "secure" in entry:
            found.setdefault(entry["arm"], []).append(entry)
    return found
