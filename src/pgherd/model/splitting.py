"""Which segments are split when new ones begin as copies of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pgherd.model.topology import group_name


def sources(sizes: Mapping[int, int], new: Sequence[int]) -> dict[int, int]:
    """The segment that each new one is split from: the largest first, each once.

    :param sizes: bytes of each present segment
    :raises ValueError: there are more new segments than present ones; the text says what goes
    """
    if len(new) > len(sizes):
        most = 2 * len(sizes)
        raise ValueError(
            f"each segment is split once, so from {len(sizes)} at most {most} come in one go:"
            f" scale to {most} first, or use spec.expansion.mode online"
        )
    by_size = sorted(sizes, key=lambda segment: (-sizes[segment], segment))
    return dict(zip(sorted(new), sorted(by_size[: len(new)]), strict=True))


def described(chosen: Mapping[int, int], sizes: Mapping[int, int]) -> str:
    """The choice in one sentence, with what it does not make even."""
    pairs = ", ".join(f"{group_name(new)} from {group_name(source)}" for new, source in chosen.items())
    whole = [group_name(segment) for segment in sizes if segment not in chosen.values()]
    uneven = f"; {', '.join(whole)} stay whole: 'pgherd rebalance' makes them even" if whole else ""
    return f"to be split off: {pairs}{uneven}"
