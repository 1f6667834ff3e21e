"""A connection string, read by the driver's own parser; nothing of it is ever shown but names of options."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

from pymongo.common import validate
from pymongo.errors import ConfigurationError, InvalidURI
from pymongo.uri_parser import parse_uri, parse_userinfo, split_hosts, split_options

from d5agent.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_Result = TypeVar("_Result")
_SCHEMES: Final = ("mongodb://", "mongodb+srv://")
_ENCODE: Final = (
    "correct [{}] uri, or the secret it comes from; in user and password write %2F for /, %3F for ?, %3A for :, "
    "%40 for @, %25 for %"
)
_NO_BALANCER: Final = "remove loadBalanced from [{}] uri, and name the members of the replica set"
_REFUSED: Final = (ValueError, TypeError, ConfigurationError, InvalidURI)
# Of these the server has no users of its own: their names are in another directory ("authSource", MongoDB manual).
_EXTERNAL: Final = frozenset({"GSSAPI", "MONGODB-AWS", "MONGODB-OIDC", "MONGODB-X509", "PLAIN"})
USED: Final = frozenset(
    {
        *("authmechanism", "authmechanismproperties", "authsource", "connecttimeoutms", "directconnection"),
        *("heartbeatfrequencyms", "loadbalanced", "maxconnecting", "maxidletimems", "replicaset"),
        *("servermonitoringmode", "srvallowedhostssuffix", "srvmaxhosts", "srvservicename", "ssl", "tls"),
        *("tlsallowinvalidcertificates", "tlsallowinvalidhostnames", "tlscafile", "tlscertificatekeyfile"),
        *("tlscertificatekeyfilepassword", "tlscrlfile", "tlsdisableocspendpointcheck", "tlsinsecure"),
    }
)
"""Options that say where the server is and how to reach it: they are used as they are."""
IGNORED: Final = frozenset(
    {
        *("appname", "compressors", "connect", "datetime_conversion", "driver", "enableoverloadretargeting", "fsync"),
        *("journal", "localthresholdms", "maxadaptiveretries", "maxpoolsize", "maxstalenessseconds", "minpoolsize"),
        *("readconcernlevel", "readpreference", "readpreferencetags", "retryreads", "retrywrites", "server_api"),
        *("serverselectiontimeoutms", "sockettimeoutms", "timeoutms", "tz_aware", "unicode_decode_error_handler"),
        *("uuidrepresentation", "w", "waitqueuemultiple", "waitqueuetimeoutms", "wtimeoutms", "zlibcompressionlevel"),
    }
)
"""Options that say how to read, write, wait and try again: the agent decides that, for itself and for mongodump."""
_SECRET_OPTIONS: Final = frozenset({"tlscertificatekeyfilepassword", "authmechanismproperties"})


@dataclass(frozen=True, slots=True, kw_only=True)
class MongoUri:
    """A connection string that the driver takes, in its parts. `hosts` as they are written; `options` by small name."""

    scheme: str
    user: str | None = field(repr=False)
    password: str | None = field(repr=False)
    hosts: str = field(repr=False)
    database: str | None = field(repr=False)
    options: Mapping[str, str] = field(repr=False)
    ignored: tuple[str, ...] = ()
    """The names of the options that were given, and that the agent ignores."""

    @property
    def text(self) -> str:
        """The string, for the driver and nobody else."""
        return self._text(self.hosts, self.database or "", self.options)

    @property
    def host_texts(self) -> tuple[str, ...]:
        """The string for each of its hosts alone, without the set's name, to ask that one directly."""
        if self.is_srv:
            return ()
        options = {name: value for name, value in self.options.items() if name != "replicaset"}
        options["directconnection"] = "true"
        return tuple(self._text(host, self.database or "", options) for host in self.hosts.split(","))

    @property
    def is_direct(self) -> bool:
        """Whether it is about the one member that it names, whatever becomes of the set's primary."""
        return self.options.get("directconnection") == "true"

    @property
    def replica_set(self) -> str | None:
        """The name of the set that it asks for."""
        return self.options.get("replicaset")

    @property
    def is_srv(self) -> bool:
        """Whether hosts and some options are in the DNS."""
        return self.scheme == _SCHEMES[1]

    @property
    def secrets(self) -> tuple[str, ...]:
        """What a child that was given the string must not be heard to repeat."""
        of_options = [value for name, value in self.options.items() if name in _SECRET_OPTIONS]
        found = [self.password, *of_options]
        return tuple(form for secret in found if secret for form in (secret, quote(secret, safe="")))

    def text_for_dump(self, dns_options: Mapping[str, Any]) -> str:
        """Return the string for mongodump: no database, which it would dump, and where to log in, said aloud.

        It takes the database that it dumps for the one that knows the user; the driver takes `admin`. `dns_options`:
        what the DNS adds.
        """
        options = dict(self.options)
        source = self._auth_source(dns_options)
        if source is not None:
            options["authsource"] = source
        return self._text(self.hosts, "", options)

    def _auth_source(self, dns_options: Mapping[str, Any]) -> str | None:
        mechanism = self.options.get("authmechanism", "")
        if self.user is None and not mechanism:
            return None
        given = self.options.get("authsource") or dns_options.get("authSource")
        if given is not None:
            return str(given)
        if mechanism in _EXTERNAL:
            return self.database if mechanism == "PLAIN" and self.database else "$external"
        return self.database or "admin"

    def _text(self, hosts: str, database: str, options: Mapping[str, str]) -> str:
        user = "" if self.user is None else quote(self.user, safe="")
        password = "" if not self.password else f":{quote(self.password, safe='')}"
        login = "" if self.user is None else f"{user}{password}@"
        query = "&".join(f"{name}={_quoted(name, value)}" for name, value in options.items())
        return f"{self.scheme}{login}{hosts}/{quote(database, safe='')}{'?' if query else ''}{query}"


def read_uri(text: str, side: str) -> MongoUri:
    """Return a connection string's parts; OperatorError, which shows nothing of it, when the driver would refuse it.

    The file that an option names is opened: OperatorError with its path when that fails.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote what may be a piece of a password
        try:
            return _parts(text)
        except _UriError as error:
            raise OperatorError(f"the {side}'s URI is wrong: {error}", hint=error.hint.format(side)) from None
        except OSError as error:  # tlsCAFile, tlsCertificateKeyFile
            raise OperatorError(
                f"a file that the {side}'s URI names cannot be read",
                hint=f"put it there with the right owner, or correct [{side}] uri",
                path=error.filename,
                reason=error.strerror,
            ) from None


class _UriError(Exception):
    """What is wrong, without a word of the string. A hint's {} is the side."""

    def __init__(self, message: str, hint: str = "correct [{}] uri, or the secret it comes from") -> None:
        super().__init__(message)
        self.hint = hint


def _parts(text: str) -> MongoUri:
    """Return the parts, each judged by the driver's parser alone, and then the whole."""
    scheme = next((scheme for scheme in _SCHEMES if text.startswith(scheme)), None)
    if scheme is None:
        raise _UriError(f"it must begin with {_SCHEMES[0]} or {_SCHEMES[1]}")
    body, _, query = text.removeprefix(scheme).partition("?")
    server, _, database = body.partition("/")
    login, at, hosts = server.rpartition("@")
    if "@" in database:
        raise _UriError("its user or password is not percent-encoded", _ENCODE)
    user, password = (
        _judged(lambda: parse_userinfo(login), "its user or password is not percent-encoded") if at else (None, None)
    )
    _judged(lambda: split_hosts(hosts), "a host or a port cannot be one")
    parsed = _judged(lambda: parse_uri(f"{_SCHEMES[0]}{hosts}/{database}"), "the name of its database cannot be one")
    given = _options(query) if query else {}
    uri = MongoUri(
        scheme=scheme,
        user=user,
        password=password or None,
        hosts=hosts,
        database=parsed["database"],
        options={name: value for name, value in given.items() if name in USED},
        ignored=tuple(name for name in given if name in IGNORED),
    )
    if uri.options.get("loadbalanced") == "true":
        raise _UriError("loadBalanced=true leads to servers that cannot be told apart", _NO_BALANCER)
    # As if there were nothing to ask the DNS for.
    options = {name: value for name, value in uri.options.items() if not (uri.is_srv and name.startswith("srv"))}
    _judged(lambda: parse_uri(replace(uri, scheme=_SCHEMES[0], options=options).text), "two of its parts contradict")
    return uri


def _options(query: str) -> dict[str, str]:
    given = _judged(
        lambda: split_options(query, validate=False, normalize=False),
        "its options are no KEY=VALUE pairs, or contradict",
    )
    options: dict[str, str] = {}
    for number, (name, value) in enumerate(given.items(), start=1):
        known = name.lower()
        if known not in USED | IGNORED:
            raise _UriError(f"d5agent does not know its option {number} of {len(given)}", _ENCODE)
        _judged(partial(validate, known, value), f"the value of its option {known} cannot be one")
        options[known] = value
    return options


def _judged(look: Callable[[], _Result], message: str) -> _Result:
    try:
        return look()
    except _REFUSED:  # their texts quote what may be a piece of a password
        raise _UriError(message, _ENCODE) from None


def _quoted(name: str, value: str) -> str:
    return value if name == "authmechanismproperties" else quote(value, safe="")  # the parser leaves that one as it is
