"""Output text of one request: detokenised as it comes, held back where a stop string may be beginning."""

from __future__ import annotations

from typing import Protocol


class Detokeniser(Protocol):
    def push(self, token_id: int) -> str: ...
    def finish(self) -> str: ...


class StopStrings:
    """Watches text for any of `stops`, across the borders of its pieces."""

    def __init__(self, stops: tuple[str, ...], include: bool) -> None:
        self._stops = stops
        self._include = include
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """(text that may be shown now, the stop string that has come true or None).

        Of several that are complete the one that begins first counts, of those the longest. Text behind it is lost.
        """
        if not self._stops:
            return text, None
        text = self._held + text
        found = [(at, -len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, _, stop = min(found)
            self._held = ""
            return text[: at + len(stop) if self._include else at], stop
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def finish(self) -> str:
        """What was held back and turned out not to be a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins, short of the whole of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0


class OutputText:
    """Tokens in, text out; `text` only ever grows and never shows a part of a stop string that came true."""

    def __init__(self, detokeniser: Detokeniser, stops: tuple[str, ...], include_stop: bool, min_tokens: int) -> None:
        self._detokeniser = detokeniser
        self._stops = StopStrings(stops, include_stop)
        self._unwatched = min_tokens
        self.text = ""

    def push(self, token_id: int) -> str | None:
        """Takes a token; returns the stop string that it completed. Stops do not count within `min_tokens`."""
        return self._take(self._detokeniser.push(token_id))

    def finish(self) -> str | None:
        """No more tokens: shows what was held back, unless it completes a stop string, which is returned."""
        stop = self._take(self._detokeniser.finish())
        if stop is None:
            self.text += self._stops.finish()
        return stop

    def _take(self, piece: str) -> str | None:
        if self._unwatched > 0:
            self._unwatched -= 1
            self.text += piece
            return None
        shown, stop = self._stops.push(piece)
        self.text += shown
        return stop
