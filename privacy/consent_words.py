"""A consent in plain sentences, for a data-protection officer."""

from privacy.consent import Consent
from privacy.identity import fingerprint
from privacy.units import INSTITUTION, RECORD


def explain(consent: Consent) -> list[str]:
    """Say in plain sentences what a consent allows, for a data-protection officer.

    Returns:
        One sentence per clause, the dangerous permissions last and marked "WARNING".

    """
    return [
        *_explain_parties(consent),
        *_explain_budget(consent),
        *_explain_scope(consent),
        *_explain_warnings(consent),
    ]


def _explain_parties(consent: Consent) -> list[str]:
    members = [
        f"Member {name} has the fingerprint {fingerprint(bytes.fromhex(key))}."
        for name, key in sorted(consent.members.items())
    ]
    coordinator = fingerprint(bytes.fromhex(consent.coordinator_key))
    return [
        f"This node takes part in the federation {consent.federation!r} of "
        f"{len(consent.members)} members, until the end of {consent.expires}.",
        f"It obeys round plans signed by one coordinator only, with the fingerprint {coordinator}.",
        *members,
        "Compare every fingerprint with its owner by telephone or in person, not through the "
        "coordinator.",
    ]


def _explain_budget(consent: Consent) -> list[str]:
    return [
        _explain_unit(consent.unit),
        f"Over the life of this data, all runs together may spend epsilon {consent.epsilon:g} at "
        f"delta {consent.delta:g}; the smaller both are, the less anyone can learn about one "
        f"{consent.unit}.",
        *_explain_data_sets(consent),
        *_explain_accountant(consent),
        *_explain_masks(consent),
        f"A sum is released only over at least {consent.smallest_cohort} members; these figures "
        f"hold even if {consent.tolerated_colluders} of them conspire with the coordinator.",
        "If every other member conspires, one run may cost epsilon "
        f"{consent.epsilon_if_all_others_collude:g} instead.",
    ]


def _explain_unit(unit: str) -> str:
    if unit == INSTITUTION:
        return (
            "The protection is counted for this institution as a whole: all that it contributes to "
            "a round is limited together. That it takes part is known to all members; the figures "
            "compare its contributions with none at all."
        )
    whose = "record" if unit == RECORD else f"value of the field {unit!r}"
    return f"The protection is counted for each {whose}: all of its data here together."


def _explain_data_sets(consent: Consent) -> list[str]:
    if not consent.keep_data_sets_apart:
        return []
    return [
        f"The node keeps data sets apart: it notes under which data set it first used each "
        f"{consent.unit}, and leaves it out of every other. What is spent on one data set then "
        "counts for that one alone; the note stays at the node.",
        f"Keys are compared as they are written: a {consent.unit} with two keys is two of them.",
    ]


def _explain_accountant(consent: Consent) -> list[str]:
    run = f"One run may spend epsilon {consent.epsilon_per_run:g}"
    if consent.accountant == "schedule":
        return [
            f"{run}; all of a run is charged before its first release, and nothing is refunded."
        ]
    return [
        f"{run}; a filter charges each release before it is made, and refuses one that does not "
        "fit. Only releases are charged, aborted attempts among them.",
        "A run may therefore stop at any time without a loss, and later runs may be chosen after "
        "seeing the results of earlier ones.",
        "The price: the filter adds up Rényi divergences (RDP), whose bound is looser than that "
        "of one schedule fixed in advance (PLD). It may hold fewer releases.",
        "The filter's budget is fixed before its first release: changing it later, or the "
        "accountant, stops the node's releases on this ledger.",
    ]


def _explain_masks(consent: Consent) -> list[str]:
    sentences = []
    if consent.sparse_graph:
        sentences.append(
            "With more than 50 members each masks with some of the others, drawn at random. That a "
            "sum over fewer members comes apart has a probability of at most 2^-40 in all, which "
            "is counted in delta."
        )
    if consent.post_quantum:
        sentences.append(
            "The secrets behind the masks withstand a quantum computer too (ML-KEM-768 beside "
            "X25519); every member must agree."
        )
    return sentences


def _explain_scope(consent: Consent) -> list[str]:
    experts = (
        "Experts that this institution trains for itself may be released, with noise of their own."
        if consent.owned_experts_may_leave
        else "Experts that this institution trains for itself never leave it."
    )
    return [
        f"The data set {consent.data_set!r} may be used for: {'; '.join(consent.purposes)}.",
        f"Only these parts of the model may be trained on it: {', '.join(consent.trainable)}.",
        experts,
        f"The node may run under: {', '.join(consent.runtimes)}.",
    ]


def _explain_warnings(consent: Consent) -> list[str]:
    warnings = []
    if "flower" in consent.runtimes:
        warnings.append(
            "WARNING: under Flower's own engines the promises above hold only if the code that "
            "they deliver is honest."
        )
    if consent.allow_unprotected_release:
        warnings.append(
            "WARNING: runs without noise are allowed. They protect nobody; the data must not be "
            "private."
        )
    if consent.allow_seeded_simulation:
        warnings.append(
            "WARNING: seeded simulations are allowed. Whoever knows the seed can remove their "
            "noise; the data must not be private."
        )
    return warnings
