"""The deliberate faults, each with the one test that has to fail when it is planted.

`tests/faults/test_planted.py` plants each and requires that its test fails. docs/privacy.md has the
same list for readers, and `tests/faults/test_table.py` holds the two against each other.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.faults import plants

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Fault:
    """A fault, and the test that has to fail when it is planted.

    Attributes:
        name: what the table of docs/privacy.md calls it.
        test: node id of the test, with its parameters if it has any.
        plant: puts the fault into the product.

    """

    name: str
    test: str
    plant: Plant


FAULTS = (
    Fault(
        "noise ÷ 10, in the source",
        "tests/dp/test_noise.py::test_secure_noise_is_standard_normal",
        plants.weak_source,
    ),
    Fault(
        "noise ÷ 10, in a node's share",
        "tests/dp/test_lattice.py::test_released_noise_has_the_stated_variance[16]",
        plants.weak_share,
    ),
    Fault(
        "clip skipped for experts",
        "tests/clipping/test_sensitivity.py"
        "::test_a_small_clipping_norm_is_kept_and_used_up_by_every_unit[0.001]",
        plants.skip_experts,
    ),
    Fault(
        "batch-coupled loss",
        "tests/clipping/test_coupling.py::test_the_others_in_a_batch_are_not_felt[full]",
        plants.couple_the_batch,
    ),
    Fault(
        "shuffled batches in place of Poisson draws",
        "tests/dp/test_sampling.py::test_draws_are_binomial",
        plants.shuffle,
    ),
    Fault(
        "shuffled batches at a node alone",
        "tests/federation/test_sum.py"
        "::test_the_opened_sum_is_that_of_the_survivors_encodings[before upload-noise]",
        plants.shuffle_at_the_node,
    ),
    Fault(
        "dividing by the true batch, at a node",
        "tests/faults/test_releases.py::test_a_draws_sum_is_not_divided_by_its_size",
        plants.divide_by_the_draw,
    ),
    Fault(
        "dividing by what came in, at the coordinator",
        "tests/federation/test_sum.py::test_a_federated_step_is_the_pooled_central_step",
        plants.divide_by_the_survivors,
    ),
    Fault(
        "an unused expert not noised, in a round",
        "tests/faults/test_releases.py::test_what_no_unit_moved_is_noised",
        plants.noise_only_what_moved,
    ),
    Fault(
        "an unused expert not noised, in a module of owned experts",
        "tests/client/test_experts_training.py::test_experts_that_no_token_uses_get_noise",
        plants.noise_only_what_moved,
    ),
    Fault(
        "release before debit, of an upload",
        "tests/client/test_gate_crashes.py::test_one_debit_and_one_upload_per_plan[debit before]",
        plants.debit_late,
    ),
    Fault(
        "release before debit, of a module",
        "tests/client/test_experts_crashes.py"
        "::test_one_debit_and_one_module_per_job[reserve before]",
        plants.debit_experts_late,
    ),
    Fault(
        "N made public under add/remove",
        "tests/faults/test_releases.py::test_the_number_of_units_stays_at_home",
        plants.write_the_count_down,
    ),
    Fault(
        "the same patient's sequences clipped apart",
        "tests/client/test_training.py::test_all_sequences_of_a_unit_are_clipped_together",
        plants.clip_sequences_apart,
    ),
    Fault(
        "a capacity that trims the draw, in the chunks",
        "tests/dp/test_sampling.py::test_chunks_hold_every_unit_once",
        plants.trim_the_draw,
    ),
    Fault(
        "a capacity that trims the draw, at a node",
        "tests/faults/test_releases.py::test_a_large_draw_is_summed_whole",
        plants.trim_at_the_node,
    ),
    Fault(
        "PLD over runs chosen adaptively",
        "tests/faults/test_releases.py::test_runs_chosen_after_seeing_results_add_up",
        plants.compose_later_runs_by_pld,
    ),
    Fault(
        "PLD over runs chosen adaptively, under a filter",
        "tests/faults/test_releases.py::test_runs_chosen_after_seeing_results_share_a_filter",
        plants.compose_filtered_runs_by_pld,
    ),
    Fault(
        "a restored, older ledger",
        "tests/client/test_restored_ledger.py::test_a_restored_older_ledger_is_refused[1]",
        plants.believe_any_ledger,
    ),
    Fault(
        "a ledger entry altered",
        "tests/ledger/test_verify.py::test_an_altered_entry_is_found",
        plants.any_root_will_do,
    ),
    Fault(
        "a ledger entry dropped",
        "tests/ledger/test_verify.py::test_a_dropped_entry_is_found",
        plants.any_index_will_do,
    ),
    Fault(
        "ledger entries reordered",
        "tests/ledger/test_verify.py::test_reordered_entries_are_found",
        plants.any_index_will_do,
    ),
    Fault(
        "a ledger forked",
        "tests/ledger/test_verify.py::test_two_histories_of_one_ledger_are_a_fork",
        plants.compare_no_copies,
    ),
    Fault(
        "an ε rounded down, in the ledger",
        "tests/dp/test_accountant.py::test_microunits_of_exact_and_bad_values",
        plants.round_down,
    ),
    Fault(
        "an ε rounded down, where people read it",
        "tests/dp/test_figures.py::test_figures_at_the_edges[3.14150000001-3.1416-3.1415]",
        plants.round_to_the_nearest,
    ),
    Fault(
        "an institution clipped in parts",
        "tests/client/test_institution.py::test_parts_that_were_clipped_apart_are_refused",
        plants.take_any_units,
    ),
    Fault(
        "ε of two units added up",
        "tests/client/test_foul_coordinator.py::test_figures_of_another_unit_are_not_added_up",
        plants.add_up_what_does_not,
    ),
    Fault(
        "a unit used under two data sets' names",
        "tests/client/test_unit_keys.py::test_units_of_the_first_are_left_out_of_the_second",
        plants.leave_nobody_out,
    ),
)
