"""Which sizes programs are compiled for: few, so that few are compiled."""

from collections.abc import Mapping

from msm_jax.sampler.border import Key


def placement(groups: int, rows: int, live: Mapping[Key, int], waiting: Mapping[Key, int]) -> tuple[int, bool, int]:
    """How many samples have rows in so many groups of so many rows, whether who waits longest is among them, and how
    many of the groups they use. (-1, False, 0) if not even those that live have rows."""
    held = {key: -(-count // rows) for key, count in live.items()}
    free, placed, first = groups - sum(held.values()), sum(live.values()), not waiting
    if free < 0:
        return -1, False, 0
    for number, (key, count) in enumerate(waiting.items()):
        room = held.get(key, 0) * rows - live.get(key, 0)
        more = min(free, -(-max(0, count - room) // rows))
        free -= more
        found = min(count, room + more * rows)
        placed += found
        first |= found > 0 and not number
    return placed, first, groups - free


def bucket(size: int) -> int:
    """Slots for a length: few different ones, so that few programs are compiled."""
    if size > 1024:
        return -(-size // 1024) * 1024
    return max(64, 1 << (size - 1).bit_length())


def batch_sizes(rows: int, devices: int = 1) -> list[int]:
    """Numbers of rows that programs are made for: powers of 4 times the devices, and `rows`."""
    sizes = [devices * 4**power for power in range(16) if devices * 4**power < rows]
    return [*(size for size in sizes if rows % size == 0), rows]
