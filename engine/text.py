"""Token bytes to text that can be streamed: whole characters only, and nothing from a stop string on."""

from __future__ import annotations

import codecs


class TextStream:
    """Collects token bytes; gives back characters that are safe to show.

    A character split over tokens is held until it is whole, and text that may be the beginning of a stop
    string until it turns out not to be. The pieces put together are the reply without the stop string.
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = stops
        self._held = ""

    def push(self, data: bytes, *, final: bool = False) -> str:
        """Add bytes and return the text that may be shown now; with `final`, everything that is left."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(data, final)
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = 0 if final else self._possible_start()
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text

    def _possible_start(self) -> int:
        """How many characters at the end may begin a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if stop.startswith(self._held[-length:]):
                    longest = length
                    break
        return longest
