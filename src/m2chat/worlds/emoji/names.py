"""CLDR's short names as English phrases: ``man in tuxedo`` to ``a man in a tuxedo``, ``locked`` to ``a closed lock``.

Rules where a rule serves, a list where English has none. Every word occurs in some name or keyword already, or the
text encoders would have to spell it.
"""

from __future__ import annotations

import re

_MASS = frozenset(
    "bread butter salt bacon ice ginger garlic spaghetti broccoli sushi oden sake popcorn custard coral fog wood yarn "
    "soap rice food salad money litter jeans briefs shorts glasses sunglasses goggles scissors maracas skis socks "
    "gloves mahjong badminton baseball softball basketball volleyball tennis lacrosse bowling hockey "
    "football arts camping bubbles thread cinema pong mate polish racing luggage water off mode exchange claim control "
    "meat".split()
)
"""Last words of names that take no article, or none of their own."""
_PLURAL = frozenset("people men women dice teeth".split())
_SINGULAR = ("ss", "us", "is", "ous", "lens", "gas", "bus", "eros")
"""Endings in s of names that are no plurals."""
_SPELT = frozenset({"atm", "x-ray", "hourglass", "sos", "ng"})  # pronounced with a vowel first
_NAMES = frozenset("mount fuji, tokyo tower, mrs. claus, mx claus, santa claus, zzz, hundred points".split(", "))
_PHRASES = {
    "information": "an information sign",
    "leafy green": "leafy green",
    "locked": "a closed lock",
    "locked with key": "a closed lock with a key",
    "locked with pen": "a closed lock with a pen",
    "unlocked": "an open lock",
    "dna": "DNA",
    "dvd": "a DVD",
    "t-shirt": "a T-shirt",
    "dizzy": "dizzy stars",
    "foggy": "a foggy city",
    "milky way": "the milky way",
    "statue of liberty": "the Statue of Liberty",
    "construction": "a construction barrier",
    "building construction": "a building under construction",
    "litter in bin sign": "a litter in bin sign",
    "cooking": "an egg in a pan",
    "pouring liquid": "pouring liquid",
    "dashing away": "dashing away",
    "breast-feeding": "a woman breast-feeding a baby",
    "star-struck": "a star-struck face",
    "rolling on the floor laughing": "a face rolling on the floor laughing",
    "palms up together": "palms up together",
    "globe showing americas": "a globe showing the Americas",
    "fish cake with swirl": "a fish cake with a swirl",
    "baguette bread": "a baguette",
    "input latin lowercase": "input latin lowercase",
    "input latin uppercase": "input latin uppercase",
    "shaved ice": "shaved ice",
    "woman and man holding hands": "a woman and a man holding hands",
    "wireless": "a wireless sign",
    "copyright": "a copyright sign",
    "registered": "a registered sign",
    "trade mark": "a trade mark sign",
    "couple with heart": "a couple with a heart",
}
_SIGNS = frozenset(
    "divide, multiply, minus, plus, infinity, radioactive, biohazard, prohibited, warning, high voltage, om, "
    "no entry, no smoking, no littering, no bicycles, no mobile phones, no pedestrians, no one under eighteen, "
    "children crossing, potable water, non-potable water, restroom, water closet".split(", ")
)
"""Names of what a sign says."""
_AFTER = {
    "with|without": "arrow, ballot, check, crown, curl, flash, garden, halo, handle, headscarf, heart, key, monocle, "
    "mouth, pen, plate, ribbon, skullcap, slash, spoon, straw, swirl, tear, thermometer, umbrella, veil, "
    "decorative cover, diagonal mouth, head-bandage, hearing aid, lowered flag, medical mask, open mouth, peeking eye, "
    "popping cork, raised flag, white cane, wry smile, raised eyebrow, hand over mouth, face",
    "in": "tuxedo, hole, manual wheelchair, motorized wheelchair, speech bubble, steamy room, suit",
    "on": "bone",
    "behind": "cloud, large cloud, small cloud, rain cloud",
    "wearing|getting|taking|rowing|bouncing|feeding|raising": "turban, haircut, massage, bath, boat, ball, baby, hand",
}
"""What names say without its article, by the words before it."""
_WITHOUT_ARTICLE = [
    re.compile(rf"\b({before}) (?=({'|'.join(after.split(', '))})\b(?!-))") for before, after in _AFTER.items()
]
_THE = re.compile(r"\b(in|on|over) (?=(wind|ground|mouth|lotus position)\b)")
_RELATIVES = frozenset("man woman boy girl".split())


def with_article(phrase: str) -> str:
    """``apple`` to ``an apple``."""
    first = phrase.split()[0].lower() if phrase else ""
    is_vowel = first[:1] in "aeiou" and not first.startswith(("uni", "use", "eu", "ewe", "one-", "one "))
    return f"{'an' if is_vowel or first in _SPELT else 'a'} {phrase}"


def phrase_of(label: str, subgroup: str = "") -> str:
    """The noun phrase of a name, with every article that English wants: ``grapes``, ``a clock at two o'clock``.

    Args:
        label: CLDR's short name, without skin tone.
        subgroup: CLDR's subgroup, such as ``time``.
    """
    name = label.lower()
    if subgroup == "time" and ("o'clock" in name or name.endswith("thirty")):
        return f"a clock at {label}"
    if subgroup == "zodiac":
        return f"the zodiac sign {label}"
    if name in _PHRASES:
        return _PHRASES[name]
    if name in _SIGNS:
        return with_article(f"{label} sign")
    head, colon, rest = label.partition(": ")
    if colon and set(rest.split(", ")) <= _RELATIVES:
        return f"{'a family of' if head == 'family' else phrase_of(head) + ':'} {_list(rest.split(', '))}"
    if colon and rest == "beard":
        return f"{phrase_of(head)} with a beard"
    label = label.replace(": facing", " facing")
    for pattern in _WITHOUT_ARTICLE:
        label = pattern.sub(lambda match: f"{match[1]} {with_article(match[2]).split()[0]} ", label)
    label = _THE.sub(r"\1 the ", label)
    return label if name in _NAMES or _has_no_article(name) else with_article(label)


def _has_no_article(name: str) -> bool:
    """Whether a name is a plural, or of something that is not counted."""
    subject = re.split(r",|:| (?:with|of|on|in|over|showing|and|savoring|holding|lifting|getting) ", name)[0].split()
    first, last = subject[0], subject[-1]
    is_pair = " and " in name and " with " not in name and name.endswith("s")
    if first in _PLURAL or first in ("two", "input"):
        return True
    return last in _MASS or last in _PLURAL or is_pair or (last.endswith("s") and not last.endswith(_SINGULAR))


def _list(people: list[str]) -> str:
    """``man, boy, boy`` to ``a man and two boys``."""
    plurals = {"man": "men", "woman": "women", "boy": "boys", "girl": "girls"}
    words = [f"two {plurals[who]}" if people.count(who) > 1 else with_article(who) for who in dict.fromkeys(people)]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
