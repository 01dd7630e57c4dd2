"""Sums over a random graph with a random committee: 60 members, 6 of them may conspire."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from privacy.round_plan import PlanCode, PlanRefused
from privacy.rounds import run_cost
from privacy.secagg.aborts import AbortCode, SecAggAbort
from privacy.secagg.header import Header, RefusalCode, SecAggRefused
from tests.secagg.conftest import Federation, build

MEMBERS, N_MIN, COLLUDERS = 60, 52, 6


@pytest.fixture(scope="module")
def many() -> Federation:
    return build(MEMBERS, N_MIN, COLLUDERS)


def refused(code: RefusalCode, action: Callable[[], object]) -> None:
    with pytest.raises(SecAggRefused) as caught:
        action()
    assert caught.value.code is code


def consent(many: Federation, **changes: Any) -> Any:
    """A budget for many honest shares of noise: alone, one is too little to be worth anything."""
    budget = {"epsilon": 1e4, "epsilon_per_run": 1e3, "epsilon_if_all_others_collude": 1e4}
    return many.consent(**{"sparse_graph": True, **budget, **changes})


def test_a_sparse_sum_is_exact_whoever_leaves(many: Federation) -> None:
    plan = many.plan(1)
    gone = list(np.random.default_rng(1).permutation(many.names)[:8])
    graph = many.roster.groups(plan)[0]
    there = [name for name in graph.committee if name not in gone]
    late = there[: min(2, len(there) - plan.quorum)]  # the committee is drawn: it may lack more
    opened = many.run(plan, before_upload=gone, before_signing=late[:1], before_unmasking=late)
    assert set(opened.survivors) == set(many.names) - set(gone)
    assert (opened.words == many.expected(plan, opened.survivors)).all()


def test_members_mask_with_their_neighbours_only(many: Federation) -> None:
    plan = many.plan(2)
    graph = many.roster.groups(plan)[0]
    for name in many.names[:5]:
        upload, _ = many.upload(name, plan)
        assert {edge.peer for edge in upload.edge_commitments} == graph.neighbours[name]
        assert tuple(packet.node for packet in upload.packets) == graph.committee
    assert len(graph.committee) == plan.committee < MEMBERS / 2
    assert np.mean([len(peers) for peers in graph.neighbours.values()]) < 1.2 * plan.degree


def test_a_victim_whose_neighbourhood_is_isolated(many: Federation) -> None:
    """The coordinator leaves out as many neighbours of a victim as it may: the rest, corrupt."""
    plan = many.plan(3)
    graph = many.roster.groups(plan)[0]
    total = many.collect(plan)
    victim = min(many.names, key=lambda name: len(graph.neighbours[name]))
    dropped = sorted(graph.neighbours[victim])[: MEMBERS - N_MIN]
    left = graph.neighbours[victim] - set(dropped)
    headers = tuple(total._uploads[n].header for n in many.names if n not in dropped)
    honest = next(n for n in graph.committee if n not in dropped and n != victim)
    harder = plan.model_copy(update={"least_neighbours": len(left) + 1})
    for node in (honest, victim if victim in graph.committee else honest):
        # A plan that asks for less than we compute never gets past `verify_plan`; a set that
        # leaves a member fewer neighbours than the plan asks for gets past nobody.
        many.nodes[node].store.plans[harder.digest()] = many.nodes[node].store.plans[plan.digest()]
        with pytest.raises(SecAggRefused) as caught:
            many.nodes[node].sign_survivors(harder, resigned(many, headers, harder))
        assert caught.value.code is RefusalCode.FEW_NEIGHBOURS
        assert victim in str(caught.value)


def resigned(many: Federation, headers: Any, plan: Any) -> Any:
    """The same headers for another plan, signed by their members."""
    read = [Header.model_validate_json(signed.payload) for signed in headers]
    return tuple(
        many.identities[header.node].sign(
            "header", header.model_copy(update={"plan": plan.digest().hex()}).payload()
        )
        for header in read
    )


def test_a_sum_that_leaves_someone_alone_is_aborted(many: Federation) -> None:
    plan = many.plan(4, least_neighbours=29)
    total = many.collect(plan)
    with pytest.raises(SecAggAbort) as caught:
        total.close()
    assert caught.value.code is AbortCode.FEW_NEIGHBOURS


def test_only_the_committee_signs_and_opens(many: Federation) -> None:
    plan = many.plan(5)
    graph = many.roster.groups(plan)[0]
    total = many.collect(plan)
    headers = total.close().headers
    outsider = next(name for name in many.names if name not in graph.committee)
    refused(
        RefusalCode.NOT_ON_COMMITTEE,
        lambda: many.nodes[outsider].sign_survivors(plan, headers),
    )
    signatures = many.sign(plan, total)[: plan.quorum - 1]
    stranger = replace(
        signatures[0],
        node=outsider,
        signature=many.identities[outsider]
        .sign("survivors", total._closed().signed_payload())
        .signature,
    )
    with pytest.raises(SecAggAbort) as caught:
        total.certify([*signatures, stranger])
    assert caught.value.code is AbortCode.NO_QUORUM
    member = signatures[0].node
    request = replace(
        total.unmask_request(member),
        certificate=tuple(sorted([*signatures, stranger], key=lambda s: s.node)),
    )
    refused(RefusalCode.NO_QUORUM, lambda: many.nodes[member].unmask(plan, request))


def test_a_node_checks_the_parameters_and_its_clause(many: Federation) -> None:
    plan = many.plan(1)
    assert many.verify(plan, consent(many)) == plan
    for changes in (
        {"degree": 12, "least_neighbours": 2},
        {"least_neighbours": 2},
        {"committee": 8, "quorum": 5},
        {"quorum": plan.quorum - 1},
        {"degree": MEMBERS - 1},
    ):
        with pytest.raises(PlanRefused) as caught:
            many.verify(many.plan(1, **changes), consent(many))
        assert caught.value.code is PlanCode.BAD_GRAPH
    with pytest.raises(ValueError, match="sparse_graph = true"):
        consent(many, sparse_graph=False)


def test_a_sparse_run_has_noise_and_a_bounded_schedule(many: Federation) -> None:
    free = consent(many, allow_unprotected_release=True)
    bare = many.plan(1, step=many.step(noise_multiplier=0.0, ring_bits=32))
    long = many.plan(1, step=many.step(releases=2**16 // 3 + 1))
    for plan, code in ((bare, PlanCode.NO_NOISE), (long, PlanCode.BAD_GRAPH)):
        with pytest.raises(PlanRefused) as caught:
            many.verify(plan, free)
        assert caught.value.code is code


def test_what_may_fail_is_taken_from_delta(many: Federation) -> None:
    tight = consent(many, delta=1.5e-10, epsilon=1e3)
    plan = many.plan(1)
    whole = run_cost(plan.model_copy(update={"degree": MEMBERS - 1}), tight)
    assert run_cost(plan, tight).epsilon > whole.epsilon > 0


def test_clauses_that_do_not_go_with_a_sparse_graph(many: Federation) -> None:
    with pytest.raises(ValueError, match="complete graph only"):
        consent(many, accountant="filter")
    with pytest.raises(ValueError, match="post_quantum = false"):
        consent(many, post_quantum=True)
