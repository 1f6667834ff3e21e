"""Errors whose class says what to do next: try again, call an operator, or distrust the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USAGE = 2  # the command line parser's own
EXIT_TRANSIENT = 75
EXIT_OPERATOR = 78


class AgentError(Exception):
    """An error with the facts of the case and a hint for whoever is on call.

    Facts and hint end up in journals and on terminals: never put a secret into them.
    """

    exit_code: ClassVar[int] = EXIT_BUG

    def __init__(self, message: str, *, hint: str = "", **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts = facts

    def say(self, otherwise: Callable[[Any], Any]) -> None:
        """Say the same in other words: message, hint and facts are what `otherwise` returns of them."""
        self.message, self.hint, self.facts = otherwise(self.message), otherwise(self.hint), otherwise(self.facts)

    @override
    def __str__(self) -> str:
        """Message and facts on one line, as a journal shows them."""
        if not self.facts:
            return self.message
        return f"{self.message} ({', '.join(f'{k}={v}' for k, v in self.facts.items())})"


class TransientError(AgentError):
    """It may heal by itself: try the same thing again."""

    exit_code = EXIT_TRANSIENT


class UnclassifiedError(TransientError):
    """A server's answer that the agent has no name for: it may pass, or never.

    Capture is tried again while the retention horizon allows it (ADR 32); everything else fails.
    """


class CredentialsError(TransientError):
    """Credentials are missing, expired or refused: it passes when somebody renews them, and they are read again.

    Capture waits for that while the retention horizon allows it (ADR 38); everything else waits as long as it takes.
    """


class OperatorError(AgentError):
    """It does not heal by itself: a person must act, and the hint says how."""

    exit_code = EXIT_OPERATOR


class NotKeptError(OperatorError):
    """The source does not keep its changes, or did not for a while: changes not yet delivered are lost."""


class NotGivenError(OperatorError):
    """What is needed for this has not been given yet, and may come later: a URI, or the value of a secret."""


class CorruptDataError(OperatorError):
    """Stored bytes are not what was stored: nothing more may be built upon them."""


class LogHeldError(OperatorError):
    """Another agent writes this log: the whole daemon must stop, not one service."""


class TooManyBytesError(AgentError):
    """An answer is larger than the caller has room for: ask for fewer documents."""


class RefusedError(OperatorError):
    """A move that the phase table does not allow at this moment."""


class UnconfirmedError(RefusedError):
    """A move that rests on what an operator has done: the message and `question` ask whether that is so."""

    def __init__(self, message: str, *, question: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.question = question
