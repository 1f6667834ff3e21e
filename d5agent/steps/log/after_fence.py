"""What comes behind the fence marker: counted by its place in the log, however late the fence is published."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from d5agent.core.log.operation import parse_event
from d5agent.errors import CorruptDataError, TransientError
from d5agent.steps.log.late import operations_behind
from d5agent.steps.log.marks import is_fence_marker, mark_document_id
from d5agent.steps.log.reader import LogReader

if TYPE_CHECKING:
    from d5agent.core.log.glance import Event
    from d5agent.core.log.operation import ClusterTime, Namespace
    from d5agent.core.log.raw import DocumentId
    from d5agent.core.run.services import Fence
    from d5agent.service import Coordinator
    from d5agent.steps.log.writer import LogWriter

_LINES: Final = 1000  # one line in the journal for so many operations after the fence


class AfterFence:
    """Counts, for one open stream, the operations of others behind the fence marker, and reports them at once.

    The marker is written, read and stored before the fence stands in the phase state, and an application may write
    meanwhile. So the operations before each marker are counted as it comes by.
    """

    def __init__(self, *, coordinator: Coordinator, writer: LogWriter) -> None:
        self._coordinator = coordinator
        self._store = writer.store
        self._begun_after = -1 if writer.last is None else writer.last.commit.sequence
        self._read = 0
        self._deletes = 0
        self._newest: tuple[Namespace, ClusterTime] | None = None
        self._markers: dict[DocumentId, int] = {}
        self._fence: Fence | None = None
        self._read_before = 0

    @property
    def count(self) -> int:
        """How many operations of others came behind the fence marker; none while there is no fence."""
        return 0 if self._fence is None else self._read - self._read_before

    def add(self, operation: Event) -> None:
        """Take the next operation of others."""
        self._read += 1
        if self._fence is not None and parse_event(operation.raw).kind == "delete":
            self._deletes += 1  # perhaps of what has expired: restore and clean tell
        self._newest = (operation.namespace, operation.cluster_time)
        if self._fence is not None and self.count % _LINES == 1:
            self._report()

    def pass_marker(self, id_: DocumentId) -> None:
        """Note where in the stream one of the agent's own documents came, if it is a fence marker."""
        if is_fence_marker(id_):
            self._markers[id_] = self._read

    async def look(self) -> None:
        """See whether a fence was published or dropped; of a new one, report what is behind its marker already."""
        fence = self._coordinator.state.fence
        if fence == self._fence:
            return
        if fence is not None:
            before = self._markers.get(mark_document_id(fence.marker))
            # An earlier stream has read the marker: the log holds it, and what that stream has read behind it.
            self._read_before = -await self._behind_in_log(fence) if before is None else before
        self._fence, self._deletes = fence, 0
        if self.count:
            self._report()

    async def _behind_in_log(self, fence: Fence) -> int:
        try:
            return await operations_behind(LogReader(store=self._store), fence, until=self._begun_after)
        except (TransientError, CorruptDataError) as error:  # restore counts again, or refuses; capture goes on
            self._coordinator.journal.warning("operations_after_fence_not_counted", error=str(error), hint=error.hint)
            return 0

    def _report(self) -> None:
        """Make an application's write after the fence known; it is not lost."""
        newest = {} if self._newest is None else {"namespace": self._newest[0], "cluster_time": self._newest[1]}
        facts = {name: str(value) for name, value in newest.items()}
        self._coordinator.journal.warning("operation_after_fence", **facts, count=self.count, deletes=self._deletes)
