"""AMQP topic patterns: `*` is one word, `#` any number of words, including none."""

from __future__ import annotations


def matches(pattern: str, message_type: str) -> bool:
    """Whether a pattern accepts a message type. Takes time in proportion to the product of their lengths."""
    words = message_type.split(".")
    # reachable[i]: the pattern so far can have used up the first i words.
    reachable = [True] + [False] * len(words)
    for part in pattern.split("."):
        if part == "#":
            first = reachable.index(True) if True in reachable else len(reachable)
            reachable = [index >= first for index in range(len(reachable))]
        else:
            moved = [reachable[i] and (part == "*" or part == word) for i, word in enumerate(words)]
            reachable = [False, *moved]
    return reachable[-1]
