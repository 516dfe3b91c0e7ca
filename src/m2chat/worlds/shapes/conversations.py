"""Conversations of the shapes world: instructions, edits, dialogues and stories, as samples of the schema.

In half of the edits and of the dialogues the captions leave out what only the context picture shows
(``meta["omitted"]``), so that a model must read it from the picture. In the other half the captions of shown pictures
are complete, as in a chat, in which the model itself captions them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np

from m2chat.worlds.shapes.builder import HIDDEN, ConversationBuilder
from m2chat.worlds.shapes.captions import MOODS, THING_OF, TOY_OF, caption_of, mood_of, paraphrases, with_article
from m2chat.worlds.shapes.phrases import QUESTIONS, SMALL_TALK, STORIES, edit_words
from m2chat.worlds.shapes.scenes import COLOURS, POSITIONS, SHAPES, SIZES, Scene, Split, held_out_keys, scenes_of_split

_MOODY = 1 / 3
"""Share of the wishes that name a mood, rare among scenes: a phrase that is rare in training is not learned."""
_PAIRS = ("wish again", "wish again", "shown again", "shown wish", "wish shown")
"""Requests of a dialogue that are answered with pictures; one for text alone comes before, between or behind them."""
_MIXED = ("wish change", "shown change", "wish edit", "edit again", "wish story", "edit story", "shown story")
"""The same for dialogues with edits and stories."""


@dataclass
class ConversationMaker:
    """Makes conversations of one split.

    Args:
        split: ``train``, ``val`` or ``test``: where the scenes to draw come from.
        seed: Makes the stream of samples reproducible.
    """

    split: Split
    seed: int
    rng: random.Random = field(init=False)
    noise: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.seed}/{self.split}")
        self.noise = np.random.default_rng(self.rng.randrange(2**32))

    def scene(self, objects: int | None = None) -> Scene:
        """A scene of the split; of one object in four fifths of the draws by default."""
        objects = objects or (1 if self.rng.random() < 0.8 else 2)
        return self.rng.choice(scenes_of_split(self.split, objects))  # type: ignore[arg-type]

    def allowed(self, scene: Scene) -> bool:
        """Whether a scene beside the target may be shown: training never sees a held-out one."""
        return scene.is_valid and (self.split != "train" or scene.key not in held_out_keys())

    def drawable(self, scene: Scene) -> bool:
        """Whether a scene may be the target of a reply: one of the split's."""
        return self.split == "train" or scene in scenes_of_split(self.split, 1 if scene.second is None else 2)

    def other(self, scene: Scene, name: str) -> Scene | None:
        """The scene with another value of one attribute, None if the one that is drawn is not allowed."""
        choices = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "position": POSITIONS, "background": COLOURS}
        values = [value for value in choices[name.removesuffix("_2")] if value != scene.attributes[name]]
        changed = scene.with_attribute(name, self.rng.choice(values))
        return changed if self.allowed(changed) else None

    def until(self, make: Callable[[], ConversationBuilder | None]) -> ConversationBuilder:
        """Calls a maker until it succeeds."""
        while (talk := make()) is None:
            pass
        return talk

    def instruct(self) -> ConversationBuilder:
        """A request that describes what to draw, half of the time in a paraphrase."""
        scene = self.scene(self.rng.choice((1, 2)))
        caption = caption_of(scene) if self.rng.random() < 0.5 else self.rng.choice(paraphrases(scene))
        talk = ConversationBuilder(self.noise)
        words = self.rng.choice(("please paint {}", "I want {}", "can you show me {} ?", "make a picture of {}"))
        talk.user(words.format(caption))
        talk.assistant("", talk.picture(scene, caption))
        return talk

    def small_talk(self) -> ConversationBuilder:
        """Greetings and the like: one alone, or two behind a picture, where a model would go on drawing."""
        return self.until(self._small_talk)

    def _small_talk(self) -> ConversationBuilder | None:
        talk = ConversationBuilder(self.noise)
        start = self.rng.choice(("", "wish", "shown"))
        if start and not getattr(self, f"_{start}")(talk):
            return None
        for _ in range(2 if start else 1):
            self._chat(talk)
        return talk

    def wish(self) -> ConversationBuilder:
        """One vague wish, and a picture that fulfils it."""
        talk = ConversationBuilder(self.noise)
        self._wish(talk)
        return talk

    def edit(self) -> ConversationBuilder:
        """A picture, an instruction and the changed picture; in three quarters, changes of that one follow."""
        rounds = self.rng.choice((1, 2, 2, 3))
        return self.until(lambda: self._edited(rounds))

    def _edited(self, rounds: int) -> ConversationBuilder | None:
        talk = ConversationBuilder(self.noise)
        return talk if self._edit(talk) and all(self._change(talk) for _ in range(rounds - 1)) else None

    def _edit(self, talk: ConversationBuilder) -> bool:
        """The user shows a picture and has one attribute of it changed."""
        after = self.scene()
        name = self._changeable(after)
        before = self.other(after, name)
        if before is None:
            return False
        # The caption of the picture before must not name what the reply's caption leaves to the context picture.
        omit = HIDDEN if self.rng.random() < 0.5 else ()
        self._ask_for(talk, name, after, talk.picture(before, caption_of(before, omit=omit)))
        return True

    def _change(self, talk: ConversationBuilder) -> bool:
        """The user has one attribute of the newest picture changed."""
        name = self._changeable(talk.scenes[-1])
        after = self.other(talk.scenes[-1], name)
        if after is None or not self.drawable(after):
            return False
        self._ask_for(talk, name, after)
        return True

    def _ask_for(self, talk: ConversationBuilder, name: str, after: Scene, *shown: int) -> None:
        """An instruction to change an attribute, and what comes of it."""
        instruction, answer = edit_words(name, after, self.rng)
        talk.user(*shown, instruction)
        omit = [hidden for hidden in talk.unnamed() if hidden != name]
        talk.assistant(answer, talk.picture(after, caption_of(after, omit=omit)))

    def _changeable(self, scene: Scene) -> str:
        """An attribute that an instruction can name."""
        return self.rng.choice([name for name in scene.attributes if scene.second is None or "colour" in name])

    def dialogue(self) -> ConversationBuilder:
        """Three replies, one of them text alone; about half of the pictures depend on an earlier one."""
        return self.until(lambda: self._dialogue(_PAIRS))

    def mixed(self) -> ConversationBuilder:
        """A dialogue of three requests in which edits are asked for too, or a story."""
        return self.until(lambda: self._dialogue(_MIXED))

    def _dialogue(self, plans: Sequence[str]) -> ConversationBuilder | None:
        talk = ConversationBuilder(self.noise)
        plan = self.rng.choice(plans).split()
        place = self.rng.randrange(3)
        plan.insert(place, self.rng.choice(("chat", "ask")) if place else "chat")
        for step in plan:
            done = getattr(self, f"_{step}")(talk)
            if not done:
                return None
        return talk

    def _chat(self, talk: ConversationBuilder) -> bool:
        text, answer = self.rng.choice(SMALL_TALK)
        talk.user(text)
        talk.assistant(answer)
        return True

    def _wish(self, talk: ConversationBuilder) -> bool:
        """A wish expressed through things that look alike; the picture does not depend on earlier ones."""
        mood = self.rng.choice(list(MOODS)) if self.rng.random() < _MOODY else None
        pool = self._scenes_of_mood(mood) if mood else []
        scene = self.rng.choice(pool) if pool else self.scene(1)
        toy = TOY_OF[scene.first.shape]
        thing_, ground = THING_OF[scene.first.colour], THING_OF[scene.background]
        if pool:
            text = f"I feel like something {mood} , maybe a {toy}"
            answer = f"Then look at this {mood} {toy} !"
        elif self.rng.random() < 0.5:
            text = f"I dream of a {toy} like the {thing_} in front of {ground}"
            answer = f"Your {toy} dream comes true !"
        else:
            text = f"imagine {ground} and before it a {toy} like the {thing_}"
            answer = f"This {toy} came to my mind ."
        talk.user(text)
        talk.assistant(answer, talk.picture(scene, caption_of(scene, omit=("size", "position"))), looks_back=False)
        return True

    def _scenes_of_mood(self, mood: str) -> list[Scene]:
        """The split's scenes of one object in the colours of a mood."""
        pool = scenes_of_split(self.split, 1)
        return [scene for scene in pool if mood_of(scene.first.colour, scene.background) == mood]

    def _again(self, talk: ConversationBuilder) -> bool:
        """A wish for something else in the place of the newest picture, naming the same attributes."""
        last, omit = talk.scenes[-1], talk.unnamed()
        hidden = attrgetter(*HIDDEN)
        place = hidden(last)
        alike = [scene for scene in scenes_of_split(self.split, 1) if hidden(scene) == place and scene != last]
        if not alike:
            return False
        scene = self.rng.choice(alike)
        toy, like = TOY_OF[scene.first.shape], THING_OF[scene.first.colour]
        talk.user(f"now a {toy} like the {like} in its place")
        talk.assistant(f"The {toy} takes its place .", talk.picture(scene, caption_of(scene, omit=omit)))
        return True

    def _shown(self, talk: ConversationBuilder) -> bool:
        """The user shows a picture and wishes for something else in its place."""
        scene = self.scene(1)
        before = scene.with_attribute("shape", self.rng.choice(SHAPES))
        before = before.with_attribute("colour", self.rng.choice(tuple(COLOURS)))
        if before == scene or not self.allowed(before):
            return False
        toy, like = TOY_OF[scene.first.shape], THING_OF[scene.first.colour]
        omit = HIDDEN if self.rng.random() < 0.65 else ()
        talk.user(
            talk.picture(before, caption_of(before, omit=omit)),
            f"I like this spot , give it a {toy} like the {like}",
        )
        talk.assistant(f"Done , a {toy} stands there .", talk.picture(scene, caption_of(scene, omit=omit)))
        return True

    def _ask(self, talk: ConversationBuilder) -> bool:
        """A question about the newest picture, if it shows one thing."""
        if talk.scenes[-1].second is not None:
            return False
        seen = talk.scenes[-1].attributes
        name, text, answer = self.rng.choice(QUESTIONS)
        answer = answer.format(with_article(seen[name]) if name == "shape" else seen[name])
        talk.user(text)
        talk.assistant(answer)
        return True

    def story(self) -> ConversationBuilder:
        """Four pictures of one thing, one attribute changing from each to the next."""
        talk = ConversationBuilder(self.noise)
        self._story(talk)
        return talk

    def _story(self, talk: ConversationBuilder) -> bool:
        """The user gives the first line of a story, and the assistant continues it."""
        # Chosen before the scene: some scenes do not fit a plot, and refusing them must not make the plot rare.
        plot = self.rng.choice(STORIES)
        self.until(lambda: talk if self._told(talk, *plot) else None)
        return True

    def _told(self, talk: ConversationBuilder, name: str, opener: str, frames: tuple[tuple[str, str], ...]) -> bool:
        scene = self.scene(1)
        hero = caption_of(scene, omit=(name,) if name in HIDDEN else ())
        if name in ("shape", "colour"):
            hero = caption_of(scene.with_attribute(name, frames[0][0]))
        scenes = [scene.with_attribute(name, value) for value, _ in frames]
        is_new = self.split == "train" or any(item.key in held_out_keys() for item in scenes)
        if not is_new or not all(self.allowed(item) for item in scenes):
            return False
        talk.user(f"{opener} {hero}")
        for item, (_, words) in zip(scenes, frames, strict=True):
            talk.assistant(words, talk.picture(item, caption_of(item)))
        return True
