"""Settings: one TOML file, any key overridden by the environment, read once; an unknown key is an error."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError
from typing_extensions import override

from d5agent.core.run.horizon import LEAST_RETENTION_SECONDS, MOST_RETENTION_SECONDS
from d5agent.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_PATH: Final = Path("/etc/d5agent/d5agent.toml")
_MEBIBYTE: Final = 1024 * 1024
# What pydantic says of these names Python's types, which are not the reader's.
_WORDS: Final = {
    "model_type": "it must be a section",
    "tuple_type": 'it must be a list of strings, such as ["systemctl", "poweroff"]',
    "too_short": "it must not be empty",
    "string_too_short": "it must not be empty",
}
_LAST_PORT: Final = 65_535
_PARTS: Final = 8  # of the memory, for each of what grows: window, comparison, prefetched segments, batch, upload


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _DatabaseSection(_Section):
    uri: SecretStr | None = None
    secret_id: str | None = None

    @model_validator(mode="after")
    def _has_at_most_one(self) -> _DatabaseSection:
        if self.uri is not None and self.secret_id is not None:
            raise ValueError("give either uri or secret_id, not both")
        return self


class SourceSettings(_DatabaseSection):
    """Where operations are captured."""

    flavor: Literal["documentdb", "mongodb"] = "documentdb"
    enable_change_streams: bool = False
    retention_seconds: int | None = Field(default=None, ge=60)

    @model_validator(mode="after")
    def _retention_is_one_that_documentdb_takes(self) -> SourceSettings:
        least, most = LEAST_RETENTION_SECONDS, MOST_RETENTION_SECONDS
        seconds = self.retention_seconds
        if seconds is not None and self.flavor == "documentdb" and not least <= seconds <= most:
            raise ValueError(f"DocumentDB's retention_seconds is between {least} and {most}")
        return self


class TargetSettings(_DatabaseSection):
    """Where they are replayed. Capture needs none of it: it may be written later."""


class StoreSettings(_Section):
    """The bucket, and what comes before all keys in it."""

    bucket: str = Field(min_length=1)
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None

    @property
    def url(self) -> str:
        """Where all objects are."""
        return self.url_of("")

    def url_of(self, key: str) -> str:
        """Return where an object is, as the AWS command line takes it."""
        return "/".join(part for part in (f"s3://{self.bucket}", self.prefix.strip("/"), key) if part)

    def key_of(self, address: str) -> str:
        """Return the key of an object that somebody names by its address; what is none of ours is a key already."""
        return address.removeprefix(f"{self.url}/")


class StateSettings(_Section):
    """Where the state files, the lock and the control socket are."""

    directory: Path = Path("/var/lib/d5agent")


class CaptureSettings(_Section):
    """When operations become segments."""

    max_segment_bytes: int = Field(default=8 * _MEBIBYTE, ge=1024, le=64 * _MEBIBYTE)
    max_segment_seconds: float = Field(default=1, gt=0, le=60)
    own_segments: int = Field(default=32, ge=0, le=1000)
    compression: Literal["none", "zstd"] = "none"


class DrainSettings(_Section):
    """How the fence is proved."""

    quiet_seconds: float = Field(default=0, ge=0)
    timeout_seconds: float = Field(default=600, gt=0)


class RestoreSettings(_Section):
    """How operations are replayed."""

    mode: Literal["drained", "live"] = "drained"
    lanes: int = Field(default=4, ge=1, le=64)
    window_bytes: int | None = Field(default=None, ge=1024)
    max_operations_per_second: float | None = Field(default=None, ge=1)
    keep_indexes: bool = True


class CutoverSettings(_Section):
    """What makes the application read-only for the cutover, and what lets it write again when that is called off."""

    command: tuple[str, ...] | None = Field(default=None, min_length=1)
    call_off_command: tuple[str, ...] | None = Field(default=None, min_length=1)


class VerifySettings(_Section):
    """How databases are compared."""

    waiting_bytes: int | None = Field(default=None, ge=1024)
    outside: Literal["full", "off"] = "full"


class BackupSettings(_Section):
    """How the databases are dumped. No list of databases: all of them but the system's."""

    mongodump: str = "mongodump"
    databases: tuple[str, ...] = ()
    check_version: bool = True
    stall_seconds: float = Field(default=300, gt=0)


class CleanSettings(_Section):
    """What becomes of the log when all is verified. No days: it is deleted; else it is archived, for so long."""

    keep_log_days: int | None = Field(default=None, ge=1, le=36_500)


class LimitsSettings(_Section):
    """What the daemon may take."""

    memory_bytes: int = Field(default=256 * _MEBIBYTE, ge=64 * _MEBIBYTE)
    drain_seconds: float = Field(default=20, gt=0)


class MetricsSettings(_Section):
    """Where metrics are served. No address: nowhere."""

    listen: str | None = None

    @field_validator("listen")
    @classmethod
    def _is_host_and_port(cls, value: str | None) -> str | None:
        if value is not None:
            parse_address(value)
        return value


class PowerSettings(_Section):
    """What switches the machine off, and how long that may take."""

    command: tuple[str, ...] = Field(default=("systemctl", "poweroff"), min_length=1)
    timeout_seconds: float = Field(default=120, gt=0)


class Settings(BaseSettings):
    """All of them; see docs/configuration.md."""

    model_config = SettingsConfigDict(
        env_prefix="D5AGENT_", env_nested_delimiter="__", extra="forbid", frozen=True, env_ignore_empty=True
    )

    source: SourceSettings
    target: TargetSettings = TargetSettings()
    store: StoreSettings
    state: StateSettings = StateSettings()
    capture: CaptureSettings = CaptureSettings()
    drain: DrainSettings = DrainSettings()
    restore: RestoreSettings = RestoreSettings()
    cutover: CutoverSettings = CutoverSettings()
    verify: VerifySettings = VerifySettings()
    backup: BackupSettings = BackupSettings()
    clean: CleanSettings = CleanSettings()
    limits: LimitsSettings = LimitsSettings()
    metrics: MetricsSettings = MetricsSettings()
    power: PowerSettings = PowerSettings()

    @property
    def ahead_bytes(self) -> int:
        """What capture may read ahead; a batch more stands in memory, twice while it is read."""
        return self.limits.memory_bytes // (2 * _PARTS)

    @property
    def upload_bytes(self) -> int:
        """What capture may have on its way to the store; the HTTP client holds it a second time."""
        return self.limits.memory_bytes // (2 * _PARTS)

    @property
    def window_bytes(self) -> int:
        """What the two windows of the restore may hold: one fills up while the other is written."""
        return self.restore.window_bytes or 2 * self.limits.memory_bytes // _PARTS

    @property
    def waiting_bytes(self) -> int:
        """What a comparison may hold of documents that wait for their partner."""
        return self.verify.waiting_bytes or self.limits.memory_bytes // _PARTS

    @classmethod
    @override
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment first, then what the file says."""
        return env_settings, init_settings


def parse_address(text: str) -> tuple[str, int]:
    """Return the host and the port of HOST:PORT, an IPv6 address in brackets; ValueError when it is something else."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or (":" in bare) != (bare != host):
        raise ValueError('it must be HOST:PORT, such as "127.0.0.1:9464" or "[::1]:9464"')
    if not port.isdecimal() or int(port) > _LAST_PORT:
        raise ValueError(f"its port must be a number up to {_LAST_PORT}")
    return bare, int(port)


def settings_path(option: Path | None) -> Path:
    """Return the file to read: what the command line says, else $D5AGENT_CONFIG, else the default."""
    return option or Path(os.environ.get("D5AGENT_CONFIG") or DEFAULT_PATH)  # noqa: TID251 -- read here only


def credentials_directory() -> Path | None:
    """Return where systemd puts the unit's credentials, if it does."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")  # noqa: TID251 -- read here only
    return Path(directory) if directory else None


def load_settings(path: Path) -> Settings:
    """Return the settings of a file and the environment.

    OperatorError: no file, no TOML, a key that is not known, or a value that cannot be; the error names the key and
    never shows the value, which may be a secret.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OperatorError(
            "no configuration",
            hint="write it (docs/configuration.md), or name it: --config FILE, or $D5AGENT_CONFIG",
            path=path,
            reason=error.strerror,
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OperatorError("the configuration is not TOML", hint="mend the line", path=path, reason=error) from None
    _refuse_unknown_variables(os.environ)  # noqa: TID251 -- read here only
    try:
        return Settings(**values)
    except ValidationError as error:
        raise OperatorError(
            "the configuration is wrong: " + "; ".join(_fault(fault) for fault in error.errors(include_input=False)),
            hint="docs/configuration.md lists every key",
            path=path,
        ) from None
    except SettingsError as error:  # a list or a whole section in the environment that is no JSON
        raise OperatorError(
            f"a variable of the section {_section_of(error)} cannot be read",
            hint='a list is written there as JSON, such as D5AGENT_POWER__COMMAND=["systemctl", "poweroff"]',
            path=path,
        ) from None


def _section_of(error: SettingsError) -> str:
    """Return the section that an unreadable variable belongs to; the error tells its name and no value."""
    words = str(error).split('"')
    return f"[{words[1]}]" if len(words) > 1 else "?"


def _fault(fault: Mapping[str, Any]) -> str:
    """Return one fault in an operator's words."""
    section, *keys = [str(part) for part in fault["loc"]] or ["?"]
    where = f"[{section}] {'.'.join(keys)}".rstrip()
    if fault["type"] == "extra_forbidden":
        return f"unknown key {where}"
    if fault["type"] == "missing":
        return f"{where} is missing"
    return f"{where}: {_WORDS.get(fault['type'], fault['msg'].removeprefix('Value error, '))}"


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    """Raise for a D5AGENT_ variable that names no section: a typing error must not pass unseen."""
    known = {f"D5AGENT_{section.upper()}__" for section in Settings.model_fields}
    for name in environment:
        other = name in {"D5AGENT_CONFIG", "D5AGENT_TOOLS"}
        if name.startswith("D5AGENT_") and not other and not any(name.startswith(k) for k in known):
            raise OperatorError(
                f"unknown key in the environment: {name}",
                hint="variables are D5AGENT_<SECTION>__<KEY>; docs/configuration.md lists them",
            )
