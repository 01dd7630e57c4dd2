"""`arion privacy calibrate | epsilon`: what a schedule costs, by its numbers alone."""

import json
from typing import Annotated, Any

import typer

from arion.errors import user_errors
from arion.options import Json
from privacy.dp.accountant import AccountantError, calibrate_noise_multiplier, epsilon_after
from privacy.dp.plan import PrivateStep
from privacy.figures import at_most
from privacy.units import INSTITUTION, RECORD

Delta = Annotated[float, typer.Option(help="Delta of the whole schedule.")]
Rounds = Annotated[int, typer.Option(help="Releases of the schedule, T.", min=1)]
Sampling = Annotated[
    float, typer.Option(help="Chance q that a unit is drawn into a round; 1: an institution.")
]
Unit = Annotated[
    str | None,
    typer.Option(help="record, a field's name, or institution.", show_default="record"),
]
Length = Annotated[
    int, typer.Option(help="Coordinates of a release; 0 leaves rounding out.", min=0)
]


def calibrate_command(  # noqa: PLR0917  (its options are its interface)
    epsilon: Annotated[float, typer.Option(help="Epsilon that the schedule may cost.")],
    delta: Delta,
    rounds: Rounds,
    sampling: Sampling,
    unit: Unit = None,
    vector_length: Length = 0,
    as_json: Json = False,
) -> None:
    """Find the least noise multiplier that keeps a schedule within an epsilon.

    Example: arion privacy calibrate --epsilon 8 --delta 1e-6 --rounds 300 --sampling 0.01
    """
    with user_errors():
        _check_sampling(unit, sampling)
        noise = calibrate_noise_multiplier(
            epsilon, delta, sampling, rounds, vector_length=vector_length
        )
    _tell(as_json, {"noise_multiplier": noise}, f"noise_multiplier = {at_most(noise, 6)}")


def epsilon_command(  # noqa: PLR0917  (its options are its interface)
    noise_multiplier: Annotated[float, typer.Option(help="Noise over sensitivity, z.")],
    delta: Delta,
    rounds: Rounds,
    sampling: Sampling,
    unit: Unit = None,
    vector_length: Length = 0,
    as_json: Json = False,
) -> None:
    """Compute the epsilon of a schedule: the inverse of `calibrate`.

    Example: arion privacy epsilon --noise-multiplier 0.8 --delta 1e-5 --rounds 1000 --sampling 0.01
    """
    with user_errors():
        if not noise_multiplier > 0:
            raise AccountantError(
                f"Expected a noise multiplier > 0, got {noise_multiplier}. Without noise there is "
                "no epsilon."
            )
        _check_sampling(unit, sampling)
        step = PrivateStep(
            clipping_norm=1.0,
            noise_multiplier=noise_multiplier,
            sampling_probability=sampling,
            expected_batch=1.0,
            honest_survivors=1,
            releases=rounds,
            unit=unit or RECORD,
        )
        spent = epsilon_after(step, rounds, delta, vector_length=vector_length, contributors=1)
    _tell(
        as_json,
        {"epsilon": spent, "delta": delta},
        f"epsilon = {at_most(spent)} at delta = {delta:g}",
    )


def _check_sampling(unit: str | None, sampling: float) -> None:
    if unit == INSTITUTION and sampling != 1:
        raise AccountantError(
            f"Expected --sampling 1 for the unit institution, got {sampling}. A member takes part "
            "in every round: nothing is drawn that could make epsilon smaller."
        )


def _tell(as_json: bool, values: dict[str, Any], text: str) -> None:
    typer.echo(json.dumps(values) if as_json else text)
