"""What tests of a hostile coordinator and of hostile members have in common."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from privacy.identity import Signed
from privacy.secagg.aborts import AbortCode, SecAggAbort
from privacy.secagg.coordinator import StreamingSum
from privacy.secagg.header import (
    Header,
    RefusalCode,
    SecAggRefused,
    read_survivors,
)
from protos.messages import SurvivorSignature


def refused(code: RefusalCode, action: Callable[[], object]) -> None:
    with pytest.raises(SecAggRefused) as caught:
        action()
    assert caught.value.code is code


def aborted(code: AbortCode, action: Callable[[], object]) -> tuple[str, ...]:
    with pytest.raises(SecAggAbort) as caught:
        action()
    assert caught.value.code is code
    return caught.value.nodes


def headers_of(total: StreamingSum, names: Iterable[str] | None = None) -> tuple[Signed, ...]:
    chosen = total.uploaded if names is None else sorted(names)
    return tuple(total._uploads[name].header for name in chosen)


def forge(federation: Any, plan: Any, headers: Any, signers: Iterable[str]) -> Any:
    """Signatures of members that sign whatever they are shown."""
    survivors = read_survivors(plan, federation.roster, headers)
    return tuple(
        SurvivorSignature(
            name,
            survivors.plan_digest,
            survivors.digest,
            federation.identities[name].sign("survivors", survivors.signed_payload()).signature,
        )
        for name in sorted(signers)
    )


def resign(federation: Any, upload: Any, **changes: Any) -> Any:
    """An upload whose member itself signs another header."""
    header = Header.model_validate_json(upload.header.payload).model_copy(update=changes)
    signed = federation.identities[upload.node].sign("header", header.payload())
    words_digest = bytes.fromhex(header.words)
    return replace(upload, header=signed, words_digest=words_digest)
