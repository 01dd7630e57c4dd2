"""Grammars of the synthetic text: sentence patterns with slots, and how a slot is filled."""

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from random import Random

from pydantic import BaseModel, ConfigDict, Field

INSTITUTIONS = ("bank", "court", "hospital", "software")
GENERAL = "general"

_SLOT = re.compile(r"\{(\w+)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeio]|1[18]\b|8)")
_PRONOUNS = (("she", "her", "her"), ("he", "him", "his"))

Facts = Mapping[str, str]
Patterns = tuple[str, ...]


class Grammar(BaseModel):
    """Patterns of public text about one field.

    Attributes:
        field: what it is about, e.g. "medicine".
        topics: topic -> slot -> values that belong to the topic (a condition's drugs).
        slots: slot -> values that fit every topic.
        numbers: slot -> (lowest, highest) whole number.
        public: section -> patterns without private facts.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    field: str
    topics: dict[str, dict[str, Patterns]] = Field(min_length=1)
    slots: dict[str, Patterns]
    numbers: dict[str, tuple[int, int]]
    public: dict[str, Patterns]

    def value(self, slot: str, topic: str, rng: Random) -> str:
        """Draw a value for `slot`: from the topic, else from the common lists, else a number."""
        values = self.topics[topic].get(slot) or self.slots.get(slot) or common().get(slot)
        if values:
            return rng.choice(values)
        low, high = (1, 28) if slot == "day" else self.numbers[slot]
        return str(rng.randint(low, high))


class PrivateGrammar(Grammar):
    """Patterns of an institution's private text.

    Attributes:
        label: the institution's invented name.
        file: name of its JSON-lines file.
        unit_field: field of a record that names its privacy unit.
        unit_prefix: first letter of the units' keys.
        fixed: slots whose value a unit keeps in all of its records.
        kinds: kind of record -> its sections in order.
        sections: section -> patterns; "extra" pads a short record.

    """

    label: str
    file: str
    unit_field: str
    unit_prefix: str
    fixed: tuple[str, ...]
    kinds: dict[str, tuple[str, ...]]
    sections: dict[str, Patterns]

    def unit_facts(self, name: str, rng: Random) -> dict[str, str]:
        """Draw what stays true of one person or party over all of its records."""
        topic = rng.choice(sorted(self.topics))
        they, them, their = rng.choice(_PRONOUNS)
        facts = {"name": name, "topic": topic, "they": they, "them": them, "their": their}
        return facts | {slot: self.value(slot, topic, rng) for slot in self.fixed}


@cache
def common() -> dict[str, list[str]]:
    """Return the lists all grammars share: names, weekdays, months."""
    lists: dict[str, list[str]] = tomllib.loads(_source("common"))
    return lists


@cache
def private_grammar(institution: str) -> PrivateGrammar:
    """Return the grammar of one of `INSTITUTIONS`."""
    return PrivateGrammar(**tomllib.loads(_source(institution)))


@cache
def public_grammar(name: str) -> Grammar:
    """Return the grammar of the public text about an institution's field, or of `GENERAL`."""
    if name in INSTITUTIONS:
        return private_grammar(name)
    return Grammar(**{"slots": {}, "numbers": {}} | tomllib.loads(_source(name)))


def _source(name: str) -> str:
    return resources.files("arion").joinpath("grammar", f"{name}.toml").read_text("utf-8")


def sentence(pattern: str, grammar: Grammar, facts: Facts, rng: Random) -> str:
    """Fill a pattern's slots and write it as a sentence.

    Args:
        pattern: text with {slots}; a capital first letter in a slot's name capitalises its value.
        grammar: where values come from.
        facts: values that are already known; "topic" must be among them.
        rng: draws the others.

    """

    def fill(match: re.Match[str]) -> str:
        slot = match[1].lower()
        value = facts.get(slot) or grammar.value(slot, facts["topic"], rng)
        value = _SLOT.sub(fill, value)
        return value[:1].upper() + value[1:] if match[1][0].isupper() else value

    text = _ARTICLE.sub(r"\1n ", _SLOT.sub(fill, pattern))
    return text[:1].upper() + text[1:]
