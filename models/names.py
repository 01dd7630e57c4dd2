"""What names, digests and statements in files must look like; nothing heavy is loaded for it."""

from typing import Annotated

from pydantic import Field

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
OwnerName = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,63}$")]
Statement = Annotated[str, Field(min_length=1, max_length=4000)]
