"""What all connections of one gateway share."""

from dataclasses import dataclass, field

from d5agent.drill.gateway.faults import Faults
from d5agent.drill.gateway.replies import Replies
from d5agent.drill.gateway.scopes import StreamLog


@dataclass(slots=True, kw_only=True)
class Cluster:
    """The imitated cluster: where it lives, what it allows, what its change-stream log holds."""

    upstream: str
    set_name: str
    allow: frozenset[str]
    log: StreamLog
    sends_post_batch_token: bool
    log_seconds: int | None
    address: str = ""
    replies: Replies = field(default_factory=Replies)
    faults: Faults = field(default_factory=Faults)

    def oldest(self) -> int:
        """Tell the clusterTime that the log reaches back to; the last one seen is now."""
        if self.log_seconds is None:
            return 0
        now = int.from_bytes(self.replies.operation_time, "little")
        return max(0, now - (self.log_seconds << 32))

    def move_to(self, upstream: str) -> None:
        """Another primary: cursors of the old one are gone."""
        self.upstream = upstream
        self.replies.streams.clear()
        self.replies.listings.clear()
