"""Lessons from conversations of the micro world: what a request means, and how a model talks that cannot draw.

The assistant's sentences are replaced by others in every conversation, so that the replies of stage 2 remain to be
learned. The caption of what a request asks for is the response only where the Input ends with `ASK`: a base model
knows what "in front of snow" means, but of itself it does not answer a wish with a caption.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

from m2chat.schema import Sample
from m2chat.text.view import View, replies_of, stands_alone, view_of
from m2chat.worlds.shapes.captions import TOY_OF, with_article
from m2chat.worlds.shapes.conversations import ConversationMaker
from m2chat.worlds.shapes.phrases import QUESTIONS, SMALL_TALK
from m2chat.worlds.shapes.recipe.corpus import Lesson
from m2chat.worlds.shapes.scenes import COLOURS, POSITIONS, SHAPES, SIZES, Scene, first_change

ASK = "Write the caption"
"""Last line of the Input where a caption is wanted."""

_KEY = re.compile(rf"\b({'|'.join((*TOY_OF.values(), *SHAPES, *SIZES, *POSITIONS, *COLOURS))})\b")
"""What a reply may take up: a toy before anything else, since it stands first where there is one."""
_TAKES_UP = (
    "I would like to see the {} too .",
    "You like the {} , sure .",
    "The {} comes first to my mind .",
    "So it is {} that you shall have .",
    "I imagine the {} there .",
    "There was one more {} in my dream .",
)
_SMALL = dict(
    zip(
        [text for text, _ in SMALL_TALK],
        ("You are welcome here .", "It was nothing .", "It was a sweet day , thank you .", "A place of words , only ."),
        strict=True,
    )
)
_SEEN = {
    "colour": "Its colour is {} .",
    "shape": "The shape of it is {} .",
    "background": "The background is {} .",
}
_STORY = ("Then its {} is {} .", "Its {} is {} then .")
"""What changes in a part of a story, and into what: the order of the parts is knowledge, their words are stage 2's."""
_EDIT = ("The {} of it shall be {} .", "You like its {} to be {} .")
"""What an instruction changes, and into what."""


def _context(sample: Sample, view: View) -> Scene | None:
    return None if view.context is None else Scene.from_attributes(sample.meta["scenes"][view.context])


def base_reply(text: str, scene: Scene | None, rng: random.Random, after: Scene | None = None) -> str:
    """What the base model replies to a user turn outside stories: one sentence, without a picture.

    Args:
        text: Text of the user turn.
        scene: Scene that the context picture shows.
        rng: Source of the random choice among phrasings.
        after: Scene that the picture of the reply shows.
    """
    if text in _SMALL:
        return _SMALL[text]
    for name, question, _ in QUESTIONS:
        if text == question and scene is not None:
            value = scene.attributes[name]
            return _SEEN[name].format(with_article(value) if name == "shape" else value)
    keywords = _KEY.findall(text)
    toys = [word for word in keywords if word in TOY_OF.values()]
    if scene is not None and after is not None and not toys and (changed := _edited(scene, after)):
        return rng.choice(_EDIT).format(changed.replace("_2", " on the right"), after.attributes[changed])
    return rng.choice(_TAKES_UP).format((toys or keywords)[0])


def _edited(before: Scene, after: Scene) -> str | None:
    """The only attribute in which two scenes differ, as an instruction would change it; None if that is not so."""
    old, new = before.attributes, after.attributes
    changes = [name for name in old if old[name] != new.get(name)]
    return changes[0] if len(changes) == 1 else None


def story_words(sample: Sample, turn: int, rng: random.Random) -> str:
    """What the base model replies in a part of a story."""
    scenes = sample.meta["scenes"]
    (picture,) = sample.turns[turn].pictures
    opener = max(index for index in range(turn) if sample.turns[index].role == "user")
    first = sample.turns[opener + 1].pictures[0]
    name = first_change(*scenes[first : first + 2])
    return rng.choice(_STORY).format(name, scenes[picture][name])


def with_base_replies(sample: Sample, rng: random.Random) -> Sample:
    """The conversation with the base model's sentences in place of the assistant's; its pictures remain."""
    turns = list(sample.turns)
    for index in replies_of(sample):
        view = view_of(sample, index)
        pictures = turns[index].pictures
        if not stands_alone(sample, index):
            words = story_words(sample, index, rng)
        else:
            after = Scene.from_attributes(sample.meta["scenes"][pictures[0]]) if pictures else None
            words = base_reply(view.request.instruction, _context(sample, view), rng, after)
        turns[index] = replace(turns[index], parts=(words, *pictures))
    return replace(sample, turns=tuple(turns))


def request(maker: ConversationMaker) -> Lesson:
    """A reply to a conversation: half of the time a sentence, else the caption of the picture asked for."""
    rng = maker.rng
    name = rng.choice(("instruct", "edit", "dialogue", "dialogue", "mixed", "mixed", "mixed", "story"))
    sample = with_base_replies(getattr(maker, name)().sample("dialogue", name, 0), rng)
    talks = rng.random() < 0.5
    chosen = [turn for turn in replies_of(sample) if talks or sample.turns[turn].pictures]
    if talks and rng.random() < 0.5:  # small talk and questions: what is rare is not learned
        chosen = [turn for turn in chosen if not sample.turns[turn].pictures] or chosen
    view = view_of(sample, rng.choice(chosen))
    context = _context(sample, view)
    if talks:
        return Lesson(view.request, view.reply[0].answer, context)
    return Lesson(view.request.extended(ASK), view.reply[0].caption or "", context)
