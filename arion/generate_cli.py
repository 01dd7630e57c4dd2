"""`arion model generate`: text from a model folder, streamed or as data."""

import json
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from arion.effort_cli import EffortOptions, ModelSampler, as_read, complete_with_effort
from arion.errors import user_errors
from arion.progress import make_progress
from models.chat import Chat
from models.checkpoint import load_model
from models.decoder import Decoder
from models.device import Device
from models.experts import Activation
from models.generate import Completion, Settings, generate, prompt_ids, stream
from models.sampling import Sampling
from models.tokenizer import Tokenizer

_STDIN = "-"
_SEED_BITS = 63

ExpertsPerToken = Annotated[
    int | None,
    typer.Option(metavar="K", help="Most experts per token.", show_default="the model's own"),
]
Threshold = Annotated[
    float,
    typer.Option(metavar="TAU", help="Leave out experts of less than TAU times the best's weight."),
]

EffortWord = Annotated[
    str | None,
    typer.Option(
        metavar="auto|N",
        help="Draw N answers and choose; auto: as many as a further one is expected to help.",
    ),
]
VerifierFolder = Annotated[
    Path | None, typer.Option(help="Who chooses: a folder of arion model verifier train.")
]
CheckCommand = Annotated[
    str | None,
    typer.Option(
        metavar="COMMAND",
        help="Who chooses: a program that reads {prompt, answer} as JSON and exits with 0 if right."
        " It runs with your rights.",
    ),
]
CheckTimeout = Annotated[float, typer.Option(help="Seconds for one check; then it says no.")]
TokenBudget = Annotated[
    int | None, typer.Option(min=1, help="Most tokens to draw, over all prompts.")
]
Revise = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Draw every second answer after prompt, best answer so far and TEXT.",
    ),
]
InChat = Annotated[
    bool, typer.Option("--chat", help="Put the prompt into the model's chat template, as a user's.")
]
System = Annotated[
    str | None, typer.Option(metavar="TEXT", help="With --chat: what the model is told before.")
]
OnDevice = Annotated[Device, typer.Option(help="Where the model is run.")]


@dataclass(frozen=True)
class _Job:
    model: Decoder
    tokenizer: Tokenizer
    prompts: tuple[str, ...]
    settings: Settings
    seed: int
    chat: Chat | None

    @property
    def texts(self) -> list[str]:
        """The prompts as the model reads them."""
        return [as_read(prompt, chat=self.chat) for prompt in self.prompts]

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


def generate_command(  # noqa: PLR0917  (its options are its interface)
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A model folder.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Text to go on from; repeatable; - reads one from standard input."),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(help="One prompt per line, or .jsonl with a field 'prompt' in each."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens per prompt.")] = 128,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token, 1 draws as the model says.")
    ] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Draw among the K likeliest only.")] = None,
    top_p: Annotated[
        float, typer.Option(help="Draw among the likeliest that make up this probability.")
    ] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Draw among tokens this many times as likely as the likeliest.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: tokens that the text holds become less likely.")
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of all draws.", show_default="a fresh one")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends it, left out of it; repeatable.")
    ] = None,
    chat: InChat = False,
    system: System = None,
    experts_per_token: ExpertsPerToken = None,
    threshold: Threshold = 0.0,
    batch: Annotated[int, typer.Option(min=1, help="Prompts read together.")] = 8,
    effort: EffortWord = None,
    verifier: VerifierFolder = None,
    check: CheckCommand = None,
    check_timeout: CheckTimeout = 10.0,
    token_budget: TokenBudget = None,
    revise: Revise = None,
    device: OnDevice = Device.CPU,
    show_as_written: Annotated[
        bool | None,
        typer.Option("--stream/--no-stream", help="Print text as it comes; one prompt only."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Generate text from prompts.

    Example: arion model generate runs/h3/model --prompt "The patient" --temperature 0.8 --seed 1

    Example: arion model generate models/instruct --chat --prompt "What does an appendix do?"
    """
    with user_errors():
        device.check()
        prompts = _prompts(prompt or [], prompts_file)
        given = EffortOptions(effort, verifier, check, check_timeout, token_budget, revise)
        spent = given.checked(batch, temperature)
        _check_system(system, in_chat=chat)
        streamed = _is_streamed(show_as_written, as_json or spent is not None, len(prompts))
        sampling = Sampling(repetition_penalty, temperature, top_k, top_p, min_p)
        activation = Activation(experts_per_token, threshold)
        settings = Settings(
            max_new_tokens, sampling, tuple(stop or ()), activation, begin_of_text=not chat
        )
        conversation = Chat.of(Tokenizer.load(path), system) if chat else None
        model, tokenizer = load_model(path)
        job = _Job(
            model.to(device), tokenizer, prompts, settings,
            secrets.randbits(_SEED_BITS) if seed is None else seed,
            conversation,
        )  # fmt: skip
        if spent is not None:
            sampler = ModelSampler(
                job.model, tokenizer, prompts, settings, job.generator(), revise, job.chat
            )
            complete_with_effort(sampler, spent[1], spent[0], job.seed, as_json=as_json)
        elif streamed:
            _print_as_written(job)
        else:
            _print_whole(job, _complete(job, batch), as_json)


def _prompts(given: Sequence[str], file: Path | None) -> tuple[str, ...]:
    if bool(given) == (file is not None):
        raise ValueError(
            f"Expected --prompt or --prompts-file, got {'both' if given else 'neither'}. Give one."
        )
    if file is not None:
        return _read_prompts(file)
    if given.count(_STDIN) > 1:
        raise ValueError("Expected --prompt - once, got it again. Standard input is read once.")
    return tuple(sys.stdin.read() if each == _STDIN else each for each in given)


def _read_prompts(file: Path) -> tuple[str, ...]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"Expected UTF-8 in {file}, got other bytes. Save it as UTF-8.") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"Expected prompts in {file}, got an empty file. Write one per line.")
    if file.suffix != ".jsonl":
        return tuple(line for _, line in numbered)
    return tuple(_prompt_of(line, f"{file}:{number}") for number, line in numbered)


def _prompt_of(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: Expected a JSON object, got {error}. Correct it.") from error
    prompt = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(prompt, str):
        raise ValueError(
            f"{where}: Expected an object with text in the field 'prompt', got none. Add it."
        )
    return prompt


def _check_system(system: str | None, *, in_chat: bool) -> None:
    if system is not None and not in_chat:
        raise ValueError("Expected --chat with --system, got none. Add it.")


def _is_streamed(wanted: bool | None, as_json: bool, prompts: int) -> bool:
    if wanted and (as_json or prompts > 1):
        got = "--json or --effort" if as_json else f"{prompts} prompts"
        raise ValueError(f"Expected one prompt as text with --stream, got {got}. Leave it out.")
    return prompts == 1 and not as_json if wanted is None else wanted


def _print_as_written(job: _Job) -> None:
    wrote = False
    for piece in stream(job.model, job.tokenizer, job.texts, job.settings, job.generator()):
        typer.echo(piece.text, nl=False)
        sys.stdout.flush()
        wrote |= bool(piece.text)
    typer.echo()
    if not wrote:
        _note_nothing(job, job.prompts[0])


def _note_nothing(job: _Job, prompt: str) -> None:
    """Say that a blank line is all that the model wrote."""
    made_for_chats = job.chat is None and job.tokenizer.chat_template is not None
    hint = " It was made for conversations: try --chat." if made_for_chats else ""
    typer.echo(f"note: the model ended the text at once after {prompt[:40]!r}.{hint}", err=True)


def _complete(job: _Job, batch: int) -> list[Completion]:
    """Complete the prompts, batch after batch: the seeds of rows do not depend on its size."""
    found: list[Completion] = []
    generator, texts, total = job.generator(), job.texts, len(job.prompts)
    # Nothing is generated before every prompt is checked.
    prompt_ids(job.model, job.tokenizer, texts, job.settings)
    progress = make_progress()
    progress.stage("generate", total)
    try:
        while len(found) < total:
            part = texts[len(found) : len(found) + batch]
            found += generate(job.model, job.tokenizer, part, job.settings, generator)
            progress.step(len(found), "")
    finally:
        progress.close()
    return found


def _print_whole(job: _Job, completions: Sequence[Completion], as_json: bool) -> None:
    pairs = list(zip(job.prompts, completions, strict=True))
    if as_json:
        listed = [
            {"prompt": p, "text": c.text, "tokens": list(c.tokens), "finish": c.finish.value}
            for p, c in pairs
        ]
        seed = job.seed if job.settings.sampling.temperature > 0 else None
        typer.echo(json.dumps({"seed": seed, "completions": listed}, indent=2, ensure_ascii=False))
        return
    for number, (prompt, completion) in enumerate(pairs, 1):
        if len(pairs) > 1:
            typer.echo(f"[{number}] {prompt}")
        typer.echo(completion.text)
        if not completion.text:
            _note_nothing(job, prompt)
