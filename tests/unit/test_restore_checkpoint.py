"""The restore's checkpoint follows each window: who is killed in the middle need not begin anew."""

from __future__ import annotations

from d5agent.steps.replay.checkpoint import CHECKPOINT
from tests.fakes.cluster import insert
from tests.fakes.stage import ORDERS, Stage


async def test_a_checkpoint_is_saved_after_the_commit_in_which_a_window_was_written() -> None:
    stage = Stage()
    for number in range(6):
        await stage.capture(insert(ORDERS, {"_id": number, "x": "y" * 2_000}))
    await stage.draw_fence()
    await stage.restore(window_bytes=8_000).run(stage.coordinator)
    saved = [value for name, value in stage.states.history if name == CHECKPOINT]
    assert [value["written"] for value in saved][:3] == [2, 4, 6]
    assert [value["sequence"] for value in saved] == sorted(value["sequence"] for value in saved)


async def test_a_window_that_ends_within_a_commit_leaves_the_checkpoint_before_that_commit() -> None:
    stage = Stage()
    await stage.capture(*[insert(ORDERS, {"_id": number, "x": "y" * 2_000}) for number in range(3)])
    await stage.capture(insert(ORDERS, {"_id": "last"}))
    await stage.draw_fence()
    await stage.restore(window_bytes=6_000).run(stage.coordinator)
    commits = [commit for commit in await stage.commits() if commit.total.operations]
    saved = [value for name, value in stage.states.history if name == CHECKPOINT]
    within = [value for value in saved if 0 < value["written"] < 3]
    assert within
    assert all(value["sequence"] < commits[0].sequence for value in within)
    assert (saved[-1]["sequence"], saved[-1]["operations"]) >= (commits[-1].sequence, commits[-1].total.operations)
