"""How much of what was asked for is of use, by stage and by reason."""

from collections import Counter, defaultdict


class Yields:
    """Counts, by stage: what was asked, and what became of it ("ok", or why not)."""

    def __init__(self):
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, stage: str, outcome: str, count: int = 1) -> None:
        self._counts[stage][outcome] += count

    def table(self) -> dict[str, dict[str, int]]:
        """Stage -> outcome -> how many, stages in the order of their work."""
        return {stage: dict(counts.most_common()) for stage, counts in self._counts.items()}
