"""The parameters of a round: how many neighbours, what threshold, how many bits, and why."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fedcore.errors import PrivacyError
from fedcore.numbers import among, got, keep, shown
from fedcore.privacy.limits import check_whole
from fedcore.privacy.secagg.counts import STREAMS, check_masked, counted
from fedcore.privacy.secagg.search import MOST_SHARES, Bounds, Targets, bounds, most_dropout, search

if TYPE_CHECKING:
    from fedcore.privacy.distributed import Distributed

STAGES = ("advertise", "share", "mask", "acknowledge", "unmask")
ADVERSARIES = ("semi_honest", "malicious")
#: clients whose positions fit the wire, coordinates of a vector
MOST_CLIENTS, MOST_LENGTH = (1 << 16) - 1, 1 << 35


@dataclass(frozen=True)
class Parameters:
    """What all members of a round agree on before it starts. Make them with `choose`.

    clients         n, members of the round
    length          coordinates of a vector
    bound           most that a coordinate may be in absolute value; 0: vectors of residues, which may be anything
    modulus_bits    b: sums are modulo 2**b, at most 64
    corrupt         most members that may be with the adversary
    dropout         most members that may go away in an honest round
    adversary       'semi_honest': a server that follows the protocol and looks; 'malicious': one that does not
    neighbours      k, clients that hold shares of a client's secrets, at most 255
    threshold       t, shares that give a secret
    in_degree       most others whose shares one client holds, where clients draw their neighbours themselves
    stream          'chacha20' or 'aes256ctr', which makes masks from keys (`ops.keystream`)
    least_included  clients below which a round is void, whatever else would do (`min_included` says who sees to it)
    groups          sums that are made at once, over others of the members: all bounds hold for these together

    Raises PrivacyError for any that are not secure: what was received is checked as what was chosen.
    """

    clients: int
    length: int
    bound: int
    modulus_bits: int
    corrupt: int
    dropout: int
    adversary: str
    neighbours: int
    threshold: int
    in_degree: int
    stream: str = "chacha20"
    least_included: int = 0
    groups: int = 1

    @classmethod
    def choose(
        cls,
        n: int,
        *,
        length: int,
        bound: int = 0,
        corrupt: float = 0.1,
        dropout: float = 0.1,
        adversary: str = "semi_honest",
        stream: str = "chacha20",
        modulus_bits: int | None = None,
        least_included: int = 0,
        groups: int = 1,
    ) -> Parameters:
        """The fewest neighbours that keep both bounds, all others in a small cohort; `explain` says why.

        n                 clients
        length, bound     coordinates of a vector, and most that one may be in absolute value
        corrupt, dropout  parts of the clients, in [0, 1), rounded down to clients: none of fewer than ten, unless more
                          is given, and a round in which then one drops out is void. Who gives false shares counts as
                          dropping out, and twice until it is found out: leave room for as many as may
        modulus_bits      None: ⌈log2(n (2 bound + 1))⌉, so that no sum wraps. Given instead of a bound where vectors
                          are residues already, as those of `fc.privacy.Distributed`
        least_included    clients below which a round is to be void; else `min_included` says
        groups            of which these clients are one; `group_parameters` chooses for all of them

        Raises PrivacyError where no number of neighbours does, and for what is out of range or does not go together.
        """
        n, bound = check_whole("n", n, 2, MOST_CLIENTS), check_whole("bound", bound, 0, 1 << 63)
        if (bound == 0) == (modulus_bits is None):
            raise PrivacyError("bound: got neither or both of bound and modulus_bits, expected one of them")
        bits = (n * (2 * bound + 1) - 1).bit_length()
        if bound and bits > 64:
            raise PrivacyError(
                f"{got('bound', bound)}, {n} clients' sums of it need {bits} bits, expected at most "
                f"(2^64 // {n} - 1) // 2 = {((1 << 64) // n - 1) // 2}"
            )
        counts = {"corrupt": counted("corrupt", corrupt, n), "dropout": counted("dropout", dropout, n)}
        if not among(adversary, ADVERSARIES):
            raise PrivacyError(f"{got('adversary', adversary)}, expected one of {', '.join(ADVERSARIES)}")
        least_included = check_whole("least_included", least_included, 0, n)
        away = n - least_included if least_included else 0
        targets = Targets.of(check_whole("groups", groups, 1, MOST_CLIENTS))
        found = search(adversary, n, **counts, away=away, targets=targets)
        found = found or search(adversary, n, **counts, targets=targets)
        if found is None:
            raise PrivacyError(
                f"n: {n} clients, {counts['corrupt']} of them corrupt and {counts['dropout']} dropping out, admit no "
                f"threshold against a {adversary} adversary; expect fewer of either, or ask for more clients"
                + (f", or form groups of at most {MOST_SHARES + 1}" if n > MOST_SHARES + 1 else "")
            )
        chosen = (counts["corrupt"], counts["dropout"], adversary, *found, stream, least_included, groups)
        return cls(n, length, bound, bits if modulus_bits is None else modulus_bits, *chosen)

    @classmethod
    def for_distributed(
        cls,
        mechanism: Distributed,
        *,
        dropout: float | None = None,
        adversary: str = "semi_honest",
        stream: str = "chacha20",
    ) -> Parameters:
        """Parameters that carry the messages of a `fc.privacy.Distributed`, and see to its honest noise.

        dropout: as in `choose`; None: the most, by bisection, that leave the fewest that the noise was made for and
        admit a threshold. A sum of fewer is void. Raises PrivacyError where a sum could be learned that has fewer
        honest clients than the mechanism counts on.
        """
        n, honest = mechanism.clients, mechanism.fewest - mechanism.corrupt
        if dropout is None:
            dropout = most_dropout(adversary, n, mechanism.corrupt, n - mechanism.fewest, honest) / n
        found = cls.choose(
            n,
            length=mechanism.padded,
            modulus_bits=(mechanism.modulus - 1).bit_length(),
            corrupt=mechanism.corrupt / n,
            dropout=dropout,
            adversary=adversary,
            stream=stream,
            least_included=int(mechanism.fewest),
        )
        if found.min_honest < honest:
            raise PrivacyError(
                f"fewest: the noise counts on {honest} honest clients in a sum, against a {adversary} server only "
                f"{found.min_honest} are certain; make the mechanism with fewest={found.min_honest + mechanism.corrupt}"
            )
        return found

    def __post_init__(self) -> None:
        n = check_whole("clients", self.clients, 2, MOST_CLIENTS)
        k = check_whole("neighbours", self.neighbours, 1, min(MOST_SHARES, n - 1))
        ranges = {
            "length": (1, MOST_LENGTH),
            "bound": (0, 1 << 63),
            "modulus_bits": (1, 64),
            "corrupt": (0, n - 1),
            "dropout": (0, n - 1),
            "threshold": (1, k),
            "in_degree": (k, n - 1),
            "least_included": (0, n),
            "groups": (1, MOST_CLIENTS),
        }
        for name, (least, most) in ranges.items():
            keep(self, **{name: check_whole(name, getattr(self, name), least, most)})
        keep(self, clients=n, neighbours=k)
        if not (among(self.adversary, ADVERSARIES) and among(self.stream, STREAMS)):
            raise PrivacyError(
                f"parameters: got {shown(self.adversary)} and {shown(self.stream)}, expected one of {ADVERSARIES} and "
                f"one of {(*STREAMS,)}"
            )
        if self.bound and n * (2 * self.bound + 1) > 1 << self.modulus_bits:
            raise PrivacyError(
                f"modulus_bits: got {self.modulus_bits}, sums of {n} clients within {self.bound} would wrap; expected "
                f"at least {(n * (2 * self.bound + 1) - 1).bit_length()}"
            )
        check_masked(self.length, self.modulus_bits, self.stream)
        if not self.complete and self.adversary == "semi_honest" and k % 2:
            raise PrivacyError(f"neighbours: got {k}, expected an even number on a circle")
        found, asked = self.chances, self.targets.security
        if found.insecure > asked or found.honest < 2:
            raise PrivacyError(
                f"parameters: {k} neighbours with threshold {self.threshold} leave a chance of 2^{found.insecure:.1f} "
                f"of exposure and {found.honest} honest clients in a sum, expected 2^{asked:g} and 2 at least"
            )

    @property
    def targets(self) -> Targets:
        """What the chances of this sum may be."""
        return Targets.of(self.groups)

    @cached_property
    def chances(self) -> Bounds:
        """What can go wrong and how likely it is."""
        return self._chances()

    def _chances(self, away: int = 0) -> Bounds:
        graph = self.neighbours, self.threshold, self.in_degree
        return bounds(self.adversary, self.clients, self.corrupt, self.dropout, *graph, away, self.targets)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of a round, in order; a server that follows the protocol needs no 'acknowledge'."""
        return STAGES if self.malicious else tuple(stage for stage in STAGES if stage != "acknowledge")

    @property
    def malicious(self) -> bool:
        """Whether clients defend themselves against the server."""
        return self.adversary == "malicious"

    @property
    def complete(self) -> bool:
        """Whether each client is a neighbour of all others."""
        return self.neighbours == self.clients - 1

    @property
    def min_honest(self) -> int:
        """Fewest honest clients in a sum.

        Whatever a malicious server does, but for `targets.security` (α of Bell et al. 2020); in a complete graph, where
        clients see to `min_included`, those of it at least. With one that follows the protocol those of `min_included`
        that are not corrupt, as long as a circle is whole then; else, since each member's neighbours are in all sums
        with it, those of a neighbourhood.
        """
        if self.malicious:
            return max(self.chances.honest, self.min_included - self.corrupt if self.complete else 0)
        if self._chances(self.clients - self.min_included).insecure <= self.targets.security:
            return self.min_included - self.corrupt
        return max(self.threshold + 1 - self.corrupt, 2)  # with t corrupt neighbours it would be exposed

    @property
    def min_included(self) -> int:
        """Fewest clients in a sum; below it a round is void.

        The server keeps to it, and clients hold it to that but in sparse graphs against a malicious one, where
        `min_honest` is what holds. It is `least_included`, and never so few that fewer than two honest ones, or those
        that a malicious server is bound to, could be among them.
        """
        floor = self.chances.honest if self.malicious else max(self.threshold + 1, self.corrupt + 2)
        return max(floor, self.least_included)

    def explain(self) -> str:
        """Why these numbers, in words."""
        from fedcore.privacy.secagg.explanation import explained

        return explained(self)

    def to_bytes(self) -> bytes:
        """A canonical form, which the keys of a round are bound to."""
        from fedcore.privacy.secagg.parameters_bytes import packed

        return packed(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Parameters:
        """Parameters that somebody sent. Raises FormatError, and PrivacyError where they are not secure."""
        from fedcore.privacy.secagg.parameters_bytes import unpacked

        return cls(**unpacked(data))
