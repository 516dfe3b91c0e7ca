"""Shares of some work, for several processes, GPUs or machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from m2chat.errors import UserError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Share:
    """A share: every n-th piece of the work.

    Args:
        number: Number of the share, from 1.
        count: Number of shares.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def of(cls, text: str) -> Share:
        """The share that a text such as ``2/4`` names; ``0/4`` is the last, so that counting from 0 gives all, too.

        Raises:
            UserError: If it names none.
        """
        number, slash, count = text.partition("/")
        is_share = slash and number.isdecimal() and count.isdecimal() and int(number) <= int(count) and int(count)
        if not is_share:
            raise UserError(f"--shard {text}: write I/N with I from 1 to N, such as 2/4")
        return cls(int(number) or int(count), int(count))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of_these(self, pieces: Sequence[_T]) -> Sequence[_T]:
        """The pieces of the share."""
        return pieces[self.number - 1 :: self.count]


WHOLE = Share()
"""All of the work."""
