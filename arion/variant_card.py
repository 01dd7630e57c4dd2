"""The model card: a passport in sentences and tables, which say nothing that it does not."""

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from models.expert_module import PUBLIC, PrivacyClaim
from models.variants.passport import OwnerShare, Passport, TextFigures
from privacy.figures import at_most

_UNITS = 1_000_000
_HEAD = "| text | tokens | loss | model's loss | KL | top-1 | largest logit difference |"


def card_text(passport: Passport, name: str) -> str:
    """Return the card in Markdown.

    Args:
        name: of the artefact.

    """
    environment = Environment(  # noqa: S701  (Markdown, and every value is our own)
        loader=PackageLoader("arion"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters["bound"] = lambda epsilon: at_most(epsilon, 3)
    template = environment.get_template("model_card.md.j2")
    return template.render(passport=passport, name=name, figures=_table, owner_words=_owner_words)


def _table(rows: Sequence[TextFigures]) -> str:
    lines = [_HEAD, "|---|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        lines.append(
            f"| {row.text} | {row.tokens:,} | {row.loss:.4f} | {row.model_loss:.4f} | "
            f"{row.kl:.1e} | {row.top1:.1%} | {row.largest_difference:.1e} |"
        )
    return "\n".join(lines)


def _owner_words(share: OwnerShare) -> str:
    if share.owner == PUBLIC:
        return ", the base's own"
    claim = share.privacy
    if isinstance(claim, PrivacyClaim):
        bound = at_most(claim.epsilon_micro / _UNITS, 3)
        said = f"; ε = {bound} per {claim.unit}, by {claim.ledger}"
    else:
        said = "; trained without noise" if claim else "; nothing is claimed"
    return said + (f"; licence: {share.licence}" if share.licence else "")
