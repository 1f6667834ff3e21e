"""The restore's checkpoint follows each window: who is killed in the middle need not begin anew."""

from __future__ import annotations

from d5agent.steps.replayer import CHECKPOINT
from tests.fakes.cluster import insert
from tests.fakes.stage import ORDERS, Stage


async def test_a_checkpoint_is_saved_after_the_commit_in_which_a_window_was_written() -> None:
    stage = Stage()
    for number in range(6):
        await stage.capture(insert(ORDERS, {"_id": number, "x": "y" * 2_000}))
    await stage.draw_fence()
    await stage.restore(window_bytes=4_000).run(stage.coordinator)
    saved = [value for name, value in stage.states.history if name == CHECKPOINT]
    assert [value["written"] for value in saved][:3] == [2, 4, 6]
    assert [value["sequence"] for value in saved] == sorted(value["sequence"] for value in saved)


async def test_a_window_that_is_written_within_a_commit_is_noted_at_its_end() -> None:
    stage = Stage()
    await stage.capture(*[insert(ORDERS, {"_id": number, "x": "y" * 2_000}) for number in range(3)])
    await stage.capture(insert(ORDERS, {"_id": "last"}))
    await stage.draw_fence()
    await stage.restore(window_bytes=3_000).run(stage.coordinator)
    commits = [commit for commit in await stage.commits() if commit.total.operations]
    first = next(value for name, value in stage.states.history if name == CHECKPOINT)
    done = next(commit for commit in commits if commit.sequence == first["sequence"])
    assert first["operations"] == done.total.operations < commits[-1].total.operations
    assert first["written"] > 0
