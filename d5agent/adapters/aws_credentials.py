"""Which errors of AWS say that credentials are missing, expired or refused: renewed ones make the same request pass."""

from __future__ import annotations

from typing import Final

from botocore.exceptions import (
    ClientError,
    CredentialRetrievalError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
)

from d5agent.errors import CredentialsError

REFUSED: Final = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidToken",
        "SignatureDoesNotMatch",  # a secret key that was rotated, or is half written
        "TokenRefreshRequired",
        "UnrecognizedClientException",
    }
)
_MISSING: Final = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    MetadataRetrievalError,
    TokenRetrievalError,
)
_RENEW: Final = (
    "renew the AWS credentials that the agent runs with (role, profile or keys): they are read again by itself"
)
_GIVE: Final = (
    "give the instance a role, or set AWS_PROFILE: they are taken up when they come. "
    "Does the instance's metadata service (169.254.169.254) answer?"
)


def credentials_error(error: BaseException, **where: object) -> CredentialsError | None:
    """Return what a failed request means if it is about credentials; None: it is not."""
    if isinstance(error, _MISSING):
        return CredentialsError("no AWS credentials", hint=_GIVE, reason=type(error).__name__, **where)
    code = str(error.response.get("Error", {}).get("Code", "?")) if isinstance(error, ClientError) else ""
    if code in REFUSED:
        return CredentialsError("AWS refused the credentials", hint=_RENEW, code=code, **where)
    return None
