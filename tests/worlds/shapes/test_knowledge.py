from __future__ import annotations

from m2chat.worlds.shapes.captions import COLOUR_OF, MOODS, SHAPE_OF, THING_OF, TOY_OF, mood_of, themed_text
from m2chat.worlds.shapes.scenes import COLOURS, SHAPES


def test_every_colour_and_shape_has_a_thing() -> None:
    assert sorted(COLOUR_OF.values()) == sorted(THING_OF) == sorted(COLOURS)
    assert sorted(SHAPE_OF.values()) == sorted(TOY_OF) == sorted(SHAPES)


def test_moods_name_two_different_colours_and_can_be_told_apart() -> None:
    assert all(len(set(pair)) == 2 and set(pair) <= set(COLOURS) for pair in MOODS.values())
    assert len(set(MOODS.values())) == len(MOODS)
    assert {mood_of(*pair) for pair in MOODS.values()} == set(MOODS) and mood_of("red", "blue") is None


def test_things_never_name_the_colour_or_the_shape() -> None:
    for colour in COLOURS:
        for shape in SHAPES:
            words = themed_text(shape, colour, "white").split()
            assert not {colour, shape, "white"} & set(words)
