"""What a reader of a private run should know, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedcore.federation.config_privacy import Privacy
from fedcore.federation.privacy_mechanisms import correlated, corrupt_among
from fedcore.privacy.factorization import Factor


def scope(settings: Privacy, population: int, open_arms: Sequence[str], dealt: str | None = None) -> Iterator[str]:
    """Towards whom ε holds, and of what. dealt: partition.kind, where it deals one pile of texts to the clients."""
    if open_arms:
        yield (
            f"warning: {', '.join(open_arms)}: not private, on the same clients: ε holds for the releases of the "
            "private arms taken alone, and the open arms show what they hide; publish one kind or the other"
        )
    yield (
        "metrics are not covered: held-out texts come from the same pool as the clients', and losses on them are "
        "published as they are"
    )
    if dealt is not None:
        changed = "replaced by another's" if settings.relation == "replace_one" else "left out"
        yield (
            f'partition.kind = "{dealt}" deals one pile of texts: a neighbour has what one dealt share adds {changed} '
            "after dealing, and who brings texts to the pile moves what all clients train on, which ε does not cover; "
            'with kind = "column" what a client trains on is its own alone'
        )
    if settings.mode == "correlated":
        yield (
            f"a neighbour of these {population} clients is the same clients in the same turns with one {settings.unit} "
            f"whose changes are {'others' if settings.relation == 'replace_one' else 'there or zero'}; turns are drawn "
            "without a look at anybody's data, and nothing rests on their being secret"
        )
    elif settings.sampling == "none" and settings.relation == "add_remove":
        yield (
            f'sampling = "none": every client is in every round and their number, {population}, is public, so that ε '
            "is of what a client adds to the sums, not of how many clients there are"
        )
    if settings.sampling != "none":
        yield (
            "the sample hides nobody from who watches the clock while the run goes on, or sees who takes part: towards "
            "them ε does not hold"
        )
    if settings.mode == "distributed":
        hidden = "its change replaced by another" if settings.relation == "replace_one" else "its change there or zero"
        yield (
            f"a neighbour of these clients is the same clients with one {settings.unit} that has {hidden}; who takes "
            "part is seen, and its noise is in the sum either way"
        )
        if (known := corrupt_among(settings, population)) > 0:
            yield (
                f"ε holds towards the participants too, who know their own noise: that of {known} in a sum is not "
                "counted, for them alone or with the server"
            )


def notes_on(settings: Privacy, noise: float, both_factors: bool, masked: bool, rounds: int) -> Iterator[str]:
    """What noise of this size in a round's mean, over the clip, does to what is released."""
    if settings.budget is None:
        yield (
            "the budget is of this run alone, and other runs over these clients add to what it spends: share one file "
            "among them as privacy.budget"
        )
    if settings.mode == "correlated":
        assert settings.separation is not None
        turns = -(-rounds // settings.separation)
        made = correlated(settings, 1, 1.0, rounds).factor
        alone = Factor(rounds, settings.separation, made.participations, 1)
        yield (
            f"correlated noise: that of all {rounds} rounds' changes together is "
            f"{alone.noise_of_prefixes[-1] / made.noise_of_prefixes[-1]:.3g} times less than if each round had its own "
            f"at the same ε; a client is in {turns} of them at most, and one charge covers all of an arm, those too "
            "that an early end leaves out"
        )
    if settings.mode == "local":
        yield (
            f"warning: local noise: the expected signal-to-noise ratio of a round is at most {1 / noise:.2g}, if all "
            'clients move the same way by the whole clip; mode = "central" adds the noise once'
        )
    elif noise > 1:
        yield (
            f"warning: the noise of a round's mean is {noise:.3g} times the clip: a round tells more about the noise "
            "than about the clients; take more clients a round, fewer numbers (a lower rank, fedsb) or a larger epsilon"
        )
    if settings.mode == "distributed" and not masked:
        yield (
            "warning: messages are not masked here, so that ε holds towards who sees the sum alone; towards the "
            "server, which sees each message, the noise is that of one client"
        )
    if both_factors:
        yield (
            "warning: both factors are noised, and their noises multiply in B · A: each round's entry in the ledger "
            "has the error that this makes beside that of B alone (error_of_delta)"
        )
