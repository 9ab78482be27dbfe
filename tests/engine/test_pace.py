from __future__ import annotations

from engine.context import BATCH
from engine.pace import ALONE_SECONDS, SMALLEST, STREAM_SECONDS, Pace


def test_a_chunk_takes_no_longer_than_others_can_wait() -> None:
    for seconds in (1e-6, 0.0005, 0.001, 0.008, 0.02, 1.0):
        pace = Pace(seconds)
        for streaming, allowed in ((True, STREAM_SECONDS), (False, ALONE_SECONDS)):
            size = pace.chunk(streaming=streaming)
            assert SMALLEST <= size <= BATCH
            assert size % SMALLEST == 0
            assert size * seconds <= allowed or size == SMALLEST
            assert size == BATCH or (size + SMALLEST) * seconds > allowed


def test_streams_wait_longer_the_more_prompts_wait() -> None:
    pace = Pace(0.009)
    sizes = [pace.chunk(streaming=True, waiting=waiting) for waiting in range(1, 9)]
    assert sizes == [32, 64, 96, 96, 96, 96, 96, 96]
    assert sizes[-1] == pace.chunk(streaming=False, waiting=8)  # a cancelled prompt is let go in time


def test_streams_wait_longer_the_longer_a_prompt_has_waited() -> None:
    pace = Pace(0.009)
    assert [pace.chunk(streaming=True, waited=5.0 * n) for n in range(4)] == [32, 64, 96, 96]


def test_it_learns_from_pieces_that_say_something() -> None:
    pace = Pace(1.0)
    with pace.timed(1):
        pass
    assert pace.seconds == 1.0
    for _ in range(20):
        with pace.timed(BATCH):
            pass
    assert pace.seconds < 0.01
