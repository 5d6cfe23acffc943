"""How far something is: a bar with the time left on a terminal; elsewhere a line now and then.

A line comes with each tenth of the work and with each minute, but no more often than every ten seconds: what is short
prints its end at most, and the log of a long job says every minute that it is alive.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import tqdm

_Item = TypeVar("_Item")

_SECONDS_BETWEEN_LINES = (10.0, 60.0)  # at least, at most
_SECONDS_BEFORE_BAR = 1.0


class Progress:
    """Shows on stderr how many of the `total` units of `label` are done, of which `start` were before. `unit` is "step"
    or the like, in the singular."""

    def __init__(self, label: str, total: int, unit: str, start: int = 0):
        self._label, self._total, self._unit = label, total, unit
        self._done = self._done_at_line = start
        self._last_line = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                desc=label, initial=start, total=total, unit=unit, dynamic_ncols=True, delay=_SECONDS_BEFORE_BAR
            )

    def update(self, done: int, text: str = "") -> None:
        """`text` tells of the work itself, such as its loss; with one, the last unit always has its line."""
        before, self._done = self._done, done
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - before)
            return
        tenth = done * 10 // self._total > before * 10 // self._total
        elapsed = time.monotonic() - self._last_line
        shortest, longest = _SECONDS_BETWEEN_LINES
        if (done == self._total and text) or elapsed > longest or (tenth and elapsed > shortest):
            left = (self._total - done) * elapsed / max(done - self._done_at_line, 1)
            parts = [f"{self._unit} {done}/{self._total}", text, f"{left:.0f} s left" if done < self._total else ""]
            print(f"{self._label}: {', '.join(part for part in parts if part)}", file=sys.stderr, flush=True)
            self._last_line, self._done_at_line = time.monotonic(), done

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def tell(line: str) -> None:
    """A line on stderr beside the bars: what a stage has left out, for example."""
    tqdm.tqdm.write(line, file=sys.stderr)


def track(items: Iterable[_Item], label: str, total: int, unit: str) -> Iterator[_Item]:
    """Yields `items`, of which there are `total`, and shows how far they are."""
    progress = Progress(label, total, unit)
    try:
        for done, item in enumerate(items, start=1):
            yield item
            progress.update(done)
    finally:
        progress.close()
