"""Who gets the next draw: prompts where one more is worth most, within a budget of tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.effort.judges import Judge


@dataclass(frozen=True)
class Draw:
    """One answer. `tokens`: what it cost. `revised`: it was drawn in view of an earlier one."""

    text: str
    tokens: int
    revised: bool = False


@dataclass(frozen=True)
class Asked:
    """What a sampler is asked: another answer to a prompt.

    Attributes:
        index: of the prompt. answers: so far. best: index of the likeliest of them, None at first.

    """

    index: int
    answers: tuple[Draw, ...]
    best: int | None


@dataclass(frozen=True)
class Effort:
    """How much is drawn.

    Attributes:
        draws: per prompt; None: as many as the judge expects to gain by, at most `Judge.most`.
        budget: most tokens over all prompts, or None. batch: draws made together, at least 1; the
            gains that choose them are those before the batch.

    """

    draws: int | None = None
    budget: int | None = None
    batch: int = 1

    def __post_init__(self) -> None:
        if self.draws is not None and self.draws < 1:
            raise ValueError(f"Expected at least 1 draw, got {self.draws}. Raise --effort.")


@dataclass(frozen=True)
class Chosen:
    """All draws for one prompt, the judge's score of each, and the index of the (first) best."""

    draws: tuple[Draw, ...]
    scores: tuple[float, ...]
    best: int


Sampler = Callable[[Sequence[Asked]], Sequence[Draw]]


def spend(  # noqa: PLR0917  (who is asked, whom, who judges, how much)
    prompts: Sequence[str],
    sampler: Sampler,
    judge: Judge,
    effort: Effort,
    room: int,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> list[Chosen]:
    """Draw answers until nothing more is expected of any prompt, or the budget ends.

    Every prompt gets one draw; after that, the prompts of the largest gain do, of equal gain the
    one with fewest draws. A draw is made only if `room` tokens are left, so that the budget is
    never exceeded.

    Args:
        prompts: what is asked. sampler: draws an answer for each that it is asked.
        judge: scores answers. effort: how much. room: most tokens of one draw, at least 1.
        told: draws made and the most there may be.

    Raises:
        ValueError: the budget does not hold one draw per prompt.

    """
    if effort.budget is not None and effort.budget < room * len(prompts):
        raise ValueError(
            f"Expected a token budget of at least {room * len(prompts)}, one answer to each "
            f"prompt, got {effort.budget}. Raise it, or lower max_new_tokens."
        )
    states = [_State(index, prompt) for index, prompt in enumerate(prompts)]
    most = len(states) * (judge.most if effort.draws is None else effort.draws)
    while batch := _next(states, judge, effort, room):
        for state, draw in zip(batch, sampler([s.asked() for s in batch]), strict=True):
            state.draws.append(draw)
            state.scores = judge.scores(state.prompt, [d.text for d in state.draws])
        told(sum(len(state.draws) for state in states), most)
    return [Chosen(tuple(s.draws), tuple(s.scores), s.best()) for s in states]


class _State:
    """One prompt's answers so far."""

    def __init__(self, index: int, prompt: str) -> None:
        self.index, self.prompt = index, prompt
        self.draws: list[Draw] = []
        self.scores: list[float] = []

    def best(self) -> int:
        return max(range(len(self.scores)), key=self.scores.__getitem__)

    def asked(self) -> Asked:
        return Asked(self.index, tuple(self.draws), self.best() if self.draws else None)

    def gain(self, judge: Judge, effort: Effort) -> float:
        """What a further draw is worth; above all else where there is none yet."""
        if not self.draws:
            return float("inf")
        if len(self.draws) >= (judge.most if effort.draws is None else effort.draws):
            return 0.0
        return judge.gain(self.scores) if effort.draws is None else 1.0


def _next(states: Sequence[_State], judge: Judge, effort: Effort, room: int) -> list[_State]:
    """Return the prompts that are drawn for next, none at the end."""
    ranked = [(-state.gain(judge, effort), len(state.draws), state.index) for state in states]
    wanted = [states[index] for gain, _, index in sorted(ranked) if gain < 0]
    allowed = effort.batch
    if effort.budget is not None:
        spent = sum(draw.tokens for state in states for draw in state.draws)
        allowed = min(allowed, (effort.budget - spent) // room)
    return wanted[:allowed]
