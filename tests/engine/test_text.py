from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.text import TextStream


@given(st.text(max_size=60), st.integers(1, 4))
def test_whole_characters_only_and_nothing_lost(text: str, step: int) -> None:
    data = text.encode("utf-8", "replace")
    stream = TextStream()
    pieces = [stream.push(data[at : at + step]) for at in range(0, len(data), step)]
    pieces.append(stream.push(b"", final=True))
    assert "".join(pieces) == data.decode("utf-8")
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


@given(
    st.text("ab<|>", max_size=40),
    st.lists(st.text("ab<|>", min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(1, 5),
)
def test_nothing_from_a_stop_string_on(text: str, stops: list[str], step: int) -> None:
    stream = TextStream(tuple(stops))
    shown = ""
    for at in range(0, len(text), step):
        shown += stream.push(text[at : at + step].encode())
        if stream.stopped:
            break
    shown += stream.push(b"", final=True)
    # a stop is found in the first push that completes one, so longer pieces may find an earlier start
    assert not any(stop in shown for stop in stops)
    assert text.startswith(shown)
    assert stream.stopped == any(stop in text for stop in stops)


def test_a_broken_character_is_replaced() -> None:
    stream = TextStream()
    assert stream.push(b"a\xe2\x82") == "a"
    assert stream.push(b"b") == "\ufffdb"
