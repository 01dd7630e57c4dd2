"""Artefacts of merged models, served from the registry in the coordinator's home.

`arion model registry` and `arion model withdraw` change that folder while it is served: what they
revoke is refused from the next call on. Every member may read what an artefact is, and check its
signature; its weights go to the roles that the settings name.
"""

import asyncio
from pathlib import Path
from typing import Any

import grpc

from coordinator.service.callers import Callers
from coordinator.service.limits import Limits, Slots
from coordinator.service.pki import ROLES, Role
from coordinator.service.refusals import Refused
from coordinator.service.sending import Sender
from coordinator.service.stores import CHUNK_BYTES
from models.variants.index import INDEX_FILE, Index, RegistryError, artefact_path, read_index
from models.variants.names import ATTESTATION, CARD, PASSPORT
from protos.arion.v1 import service_pb2 as pb
from protos.arion.v1 import service_pb2_grpc as rpc

REGISTRY_FOLDER = "registry"
_PAPERS = frozenset({PASSPORT, CARD, ATTESTATION})


class Artefacts(rpc.ArtefactsServicer):
    """Serves a registry to members.

    Args:
        callers: admits members.
        folder: of the registry; there need not be one.
        roles: that may have the weights.
        limits: of a member.

    """

    def __init__(
        self, callers: Callers, folder: Path, roles: tuple[Role, ...], limits: Limits
    ) -> None:
        self._callers, self._folder, self._roles = callers, folder, roles
        self._limits = limits
        self._transfers = Slots(limits.transfers, "too-many-transfers", "transfers")

    async def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say what there is."""
        await self._callers.admit(context, *ROLES)
        index = await asyncio.to_thread(self._index)
        return pb.ListReply(index=index.model_dump_json().encode())

    async def Pull(self, request: Any, context: Any) -> None:  # noqa: N802
        """Send a file of an active artefact."""
        roles = ROLES if request.file in _PAPERS else self._roles
        member = await self._callers.admit(context, *roles)
        path = await asyncio.to_thread(self._file, bytes(request.artefact).hex(), request.file)
        size = path.stat().st_size
        sender = Sender(context, self._limits, size)
        with self._transfers.take(member.name), path.open("rb") as file:
            file.seek(min(request.offset, size))
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                await sender.send(pb.Chunk(data=chunk))

    def _index(self) -> Index:
        """The index; an empty one where there is no registry."""
        if not (self._folder / INDEX_FILE).exists():
            return Index()
        try:
            return read_index(self._folder)
        except RegistryError as error:  # whose text has a path of ours
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                "bad-registry",
                "Expected a registry that can be read, got a damaged one. Tell the operator.",
            ) from error

    def _file(self, digest: str, name: str) -> Path:
        active = {entry.digest for entry in self._index().active()}
        folder = artefact_path(self._folder, digest)
        # The name is looked up among those that are there: a path of the caller's is never opened.
        found = {path.name: path for path in folder.iterdir()} if digest in active else {}
        if name not in found:
            raise Refused(
                grpc.StatusCode.NOT_FOUND,
                "unknown-artefact",
                "Expected a file of an artefact that is served, got another, or one that was "
                "revoked. `arion model registry list` shows what there is.",
            )
        return found[name]
