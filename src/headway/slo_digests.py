"""API keys as an SLO file lists them and as clients send them: digests, never the keys."""

from __future__ import annotations

import hashlib
import re

from headway.errors import UserError

DIGEST_PREFIX = "sha256:"
"""How a key is written whose digest alone is in the file."""

_DIGEST = re.compile(DIGEST_PREFIX + "[0-9a-f]{64}")


def digest_of(key: str | bytes) -> str:
    """Return the SHA-256 of an API key, as ``printf %s KEY | sha256sum`` prints it."""
    data = key.encode() if isinstance(key, str) else key
    return hashlib.sha256(data).hexdigest()


def listed_digest(where: str, written: str) -> str:
    """Return the digest of a key that a file lists, in clear or as its digest.

    Raises:
        UserError: A digest is not one. The sentence does not repeat it.
    """
    if not written.startswith(DIGEST_PREFIX):
        return digest_of(written)
    if not _DIGEST.fullmatch(written):
        raise UserError(f"{where} must be 'sha256:' and 64 hexadecimal digits in lower case.")
    return written.removeprefix(DIGEST_PREFIX)


def sent_digests(api_key: bytes) -> tuple[str, str]:
    """Return the digests under which a file may list the key of a header, the plainer one last.

    A key with other letters than ASCII's is in the file as UTF-8; clients send it so, or as
    ISO 8859-1, which is how vLLM reads it.
    """
    return digest_of(api_key), digest_of(api_key.decode("latin-1"))
