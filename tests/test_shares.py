from __future__ import annotations

import pytest

from m2chat.errors import UserError
from m2chat.shares import WHOLE, Share


@pytest.mark.parametrize("first", [0, 1])
def test_shares_are_all_of_the_work_counted_from_one_or_from_zero(first: int) -> None:
    pieces = list(range(10))
    shares = [Share.of(f"{number}/3") for number in range(first, first + 3)]
    assert sorted(piece for share in shares for piece in share.of_these(pieces)) == pieces
    assert {str(share) for share in shares} == {"1/3", "2/3", "3/3"} and WHOLE.of_these(pieces) == pieces


@pytest.mark.parametrize("text", ["", "1", "3/2", "0/0", "-1/2", "a/b", "1/2/3"])
def test_what_names_no_share_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--shard .*write I/N with I from 1 to N"):
        Share.of(text)
