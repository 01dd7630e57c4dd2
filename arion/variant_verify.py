"""An artefact checked offline: bytes, what its files say of themselves, and who vouches for it."""

from dataclasses import dataclass
from pathlib import Path

from arion.variant_publication import PREDICATE
from models.durable import file_digest
from models.variants.names import ATTESTATION, PASSPORT
from models.variants.passport import Passport, verify_artefact
from privacy.attestation import AttestationError, verify_attestation
from privacy.canonical import canonical_bytes


@dataclass(frozen=True)
class Verdict:
    """An artefact that held. Attributes: signer: fingerprint; None where nobody signed."""

    passport: Passport
    signer: str | None

    @property
    def said_by(self) -> str:
        """Whose word the files were held against."""
        return f"{PASSPORT}, which nobody signed," if self.signer is None else self.signer


def verify_variant(folder: Path, signer: str | None = None, *, unsigned: bool = False) -> Verdict:
    """Check an artefact.

    1. Every file is as `variant.json` names it, and none is surplus. 2. What the files say of
    themselves is what the passport says. 3. The attestation's signature holds, by the expected
    signer. 4. It is about exactly these files, and says what the passport says.

    Args:
        signer: fingerprint obtained out of band; None accepts any signer, and the verdict names it.
        unsigned: accept an artefact without an attestation.

    Raises:
        VariantError: 1 or 2 does not hold. AttestationError: 3 or 4 does not hold, or nobody
            signed and `unsigned` is not set.

    """
    passport = verify_artefact(folder)  # 1, 2
    path = folder / ATTESTATION
    if not path.is_file():
        if unsigned and signer is None:
            return Verdict(passport, None)
        raise AttestationError(
            f"Expected a signature in {ATTESTATION}, got no such file. Take the artefact from "
            "where it was published, or accept it with --unsigned: whoever changed it could have "
            "written its passport anew."
        )
    attested = verify_attestation(path.read_bytes(), PREDICATE, signer)  # 3
    said = passport.model_dump(mode="json", exclude={"files"})
    files = {**passport.files, PASSPORT: file_digest(folder / PASSPORT)}
    same = canonical_bytes(dict(attested.predicate)) == canonical_bytes(said)
    if dict(attested.files) != files or not same:  # 4
        raise AttestationError(
            f"Expected a statement about this artefact, got one of {attested.signer} about "
            "another. Take both from where they were published."
        )
    return Verdict(passport, attested.signer)
