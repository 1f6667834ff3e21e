"""Where a database's URI comes from: the setting, a secret of AWS Secrets Manager, or a systemd credential."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError

from d5agent.adapters.aws_credentials import credentials_error
from d5agent.errors import NotGivenError, OperatorError, TransientError

if TYPE_CHECKING:
    from pathlib import Path

_WANTED: Final = "a JSON object with uri, or with username, password, host and port"
_NOT_FOUND: Final = "ResourceNotFoundException"  # also for a secret that exists and has no value yet
_PASSING: Final = frozenset({"InternalServiceError", "InternalServiceErrorException", "ThrottlingException"})
_NO_VALUE: Final = (
    f"is that its name, in this region? Has it a value yet ({_WANTED})? If not, type: "
    "aws secretsmanager put-secret-value --secret-id {} --secret-string file://FILE; then start again what failed"
)
_NO_RIGHT: Final = "may the instance's role read it (secretsmanager:GetSecretValue on {})?"


@dataclass(frozen=True, slots=True, kw_only=True)
class UriOrigin:
    """Where to look, in this order."""

    side: str
    uri: str | None
    secret_id: str | None
    credentials: Path | None

    async def uri_of(self, *, endpoint_url: str | None, region: str | None) -> str:
        """Return the URI. It is a secret: it goes into the driver and nowhere else."""
        if self.uri is not None:
            return self.uri
        if self.secret_id is not None:
            body = await _secret(self.secret_id, self.side, endpoint_url=endpoint_url, region=region)
            return uri_from_secret(body, self.side)
        return self._credential()

    def _credential(self) -> str:
        try:
            if self.credentials is not None:
                return (self.credentials / f"{self.side}.uri").read_text(encoding="utf-8").strip()
        except OSError:
            pass  # the same as no credentials at all
        raise NotGivenError(
            f"no URI for the {self.side}",
            hint=f"give [{self.side}] uri or secret_id, or the systemd credential {self.side}.uri; then start again "
            "what failed",
        )


async def _secret(secret_id: str, side: str, *, endpoint_url: str | None, region: str | None) -> str:
    """Return a secret's text (GetSecretValue)."""
    try:
        async with get_session().create_client(
            "secretsmanager", endpoint_url=endpoint_url, region_name=region
        ) as client:
            answer = await client.get_secret_value(SecretId=secret_id)
    except ClientError as error:
        refused = credentials_error(error, secret_id=secret_id)
        if refused is not None:
            raise refused from error
        code = str(error.response.get("Error", {}).get("Code", "?"))
        if code in _PASSING:
            raise TransientError(
                "Secrets Manager did not answer well",
                hint="it passes as a rule; else see the AWS Health Dashboard",
                code=code,
            ) from error
        kind, hint = (NotGivenError, _NO_VALUE) if code == _NOT_FOUND else (OperatorError, _NO_RIGHT)
        raise kind(
            f"the {side}'s secret cannot be read", hint=hint.format(secret_id), secret_id=secret_id, code=code
        ) from error
    except (BotoCoreError, OSError) as error:
        refused = credentials_error(error, secret_id=secret_id)
        if refused is not None:
            raise refused from error
        raise TransientError(
            "Secrets Manager is not reached",
            hint="has this machine a way to it (VPC endpoint, security group) and a role? then try again",
            reason=type(error).__name__,
        ) from error
    return str(answer.get("SecretString", ""))  # a binary secret has none


def uri_from_secret(body: str, side: str) -> str:
    """Return the URI that a secret's text means; OperatorError, without the text, when it means none."""
    try:
        fields: dict[str, Any] = json.loads(body)
        if "uri" in fields:
            return str(fields["uri"])
        user, password = quote(str(fields["username"]), safe=""), quote(str(fields["password"]), safe="")
        return f"mongodb://{user}:{password}@{fields['host']}:{fields['port']}/?replicaSet=rs0&authSource=admin"
    except (ValueError, KeyError, TypeError):
        raise OperatorError(f"the secret of the {side} is not what it should be", hint=f"it is {_WANTED}") from None
