"""Conversations of the micro world: instructions, edits, dialogues and stories, as samples of the schema.

Half of the edits and of the dialogues' pictures are told in captions that leave out what only the context picture
shows (``meta["omitted"]``); there a model must look, not read. The other half tell shown pictures in full, as a chat
does, in which the model itself says what a picture shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from m2chat.data.micro_words import QUESTIONS, SMALL_TALK, STORIES, edit_words
from m2chat.schema import Image, Kind, Sample, Turn
from m2chat.world.captions import caption_of, parse_caption, with_article
from m2chat.world.knowledge import MOODS, THING_OF, TOY_OF, mood_of
from m2chat.world.render import render
from m2chat.world.scene import COLOURS, POSITIONS, SHAPES, SIZES, Scene, Split, held_out_keys, scenes_of_split

_HIDDEN = ("size", "position", "background")
"""Attributes that a caption may leave to the context picture."""
_MOODY = 1 / 3
"""Share of the wishes that name a mood, rare among scenes: a phrase that is rare in training is not learned."""
_PAIRS = ("wish again", "wish again", "shown again", "shown wish", "wish shown")
"""Replies of a dialogue that have a picture; one of text alone comes before, between or behind them."""


@dataclass
class Maker:
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
        """A scene of the split; of one object in four fifths of the draws, unless told."""
        objects = objects or (1 if self.rng.random() < 0.8 else 2)
        return self.rng.choice(scenes_of_split(self.split, objects))  # type: ignore[arg-type]

    def allowed(self, scene: Scene) -> bool:
        """Whether a scene beside the target may be shown: training never sees a held-out one."""
        return scene.is_valid and (self.split != "train" or scene.key not in held_out_keys())

    def drawable(self, scene: Scene) -> bool:
        """Whether a scene may be the target of a reply: one of the split's own."""
        return self.split == "train" or scene in scenes_of_split(self.split, 1 if scene.second is None else 2)

    def other(self, scene: Scene, name: str) -> Scene | None:
        """The scene with another value of one attribute, None if no allowed one was found."""
        choices = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "position": POSITIONS, "background": COLOURS}
        values = [value for value in choices[name.removesuffix("_2")] if value != scene.attributes[name]]
        changed = scene.with_attribute(name, self.rng.choice(values))
        return changed if self.allowed(changed) else None

    def until(self, make: Callable[[], Talk | None]) -> Talk:
        """Calls a maker until it succeeds."""
        while (talk := make()) is None:
            pass
        return talk

    def instruct(self) -> Talk:
        """A request that says what to draw."""
        scene = self.scene(self.rng.choice((1, 2)))
        caption = caption_of(scene)
        talk = Talk(self)
        words = self.rng.choice(("please paint {}", "I want {}", "can you show me {} ?", "make a picture of {}"))
        talk.user(words.format(caption))
        talk.assistant("", talk.picture(scene, caption))
        return talk

    def small_talk(self) -> Talk:
        """Greetings and the like: one alone, or two behind a picture, where a model would go on drawing."""
        return self.until(self._small_talk)

    def _small_talk(self) -> Talk | None:
        talk = Talk(self)
        start = self.rng.choice(("", "wish", "shown"))
        if start and not getattr(self, f"_{start}")(talk):
            return None
        for _ in range(2 if start else 1):
            self._chat(talk)
        return talk

    def wish(self) -> Talk:
        """One vague wish, and a picture that fulfils it."""
        talk = Talk(self)
        self._wish(talk)
        return talk

    def edit(self) -> Talk:
        """A picture, an instruction and the changed picture; in two thirds, a change of that one follows."""
        rounds = self.rng.choice((1, 2, 2))
        return self.until(lambda: self._edit(rounds))

    def _edit(self, rounds: int) -> Talk | None:
        after = self.scene()
        name = self._changeable(after)
        before = self.other(after, name)
        if before is None:
            return None
        brief = self.rng.random() < 0.5
        talk = Talk(self)
        # The picture before must not tell in words what the caption leaves to the eye.
        shown = talk.picture(before, caption_of(before, omit=_HIDDEN if brief else ()))
        self._change(talk, (shown,), name, after, brief)
        if rounds == 2:
            name = self._changeable(after)
            last = self.other(after, name)
            if last is None or not self.drawable(last):
                return None
            self._change(talk, (), name, last, brief)
        return talk

    def _changeable(self, scene: Scene) -> str:
        """An attribute that an instruction can name."""
        return self.rng.choice([name for name in scene.attributes if scene.second is None or "colour" in name])

    def _change(self, talk: Talk, shown: tuple[int, ...], name: str, after: Scene, brief: bool) -> None:
        """One round of an edit; a brief one leaves all but the change to the eye."""
        instruction, answer = edit_words(name, after, self.rng)
        talk.user(*shown, instruction)
        omit = [hidden for hidden in _HIDDEN if hidden != name] if brief else []
        talk.assistant(answer, talk.picture(after, caption_of(after, omit=omit)))

    def dialogue(self) -> Talk:
        """Three replies, one of them text alone; about half of the pictures depend on an earlier one."""
        return self.until(self._dialogue)

    def _dialogue(self) -> Talk | None:
        talk = Talk(self)
        plan = self.rng.choice(_PAIRS).split()
        place = self.rng.randrange(3)
        plan.insert(place, self.rng.choice(("chat", "ask")) if place else "chat")
        for step in plan:
            done = getattr(self, f"_{step}")(talk)
            if not done:
                return None
        return talk

    def _chat(self, talk: Talk) -> bool:
        said, answer = self.rng.choice(SMALL_TALK)
        talk.user(said)
        talk.assistant(answer)
        return True

    def _wish(self, talk: Talk) -> bool:
        """A wish told through things that look like it; the picture owes nothing to earlier ones."""
        mood = self.rng.choice(list(MOODS)) if self.rng.random() < _MOODY else None
        pool = self._scenes_of_mood(mood) if mood else []
        scene = self.rng.choice(pool) if pool else self.scene(1)
        toy = TOY_OF[scene.first.shape]
        thing_, ground = THING_OF[scene.first.colour], THING_OF[scene.background]
        if pool:
            said = f"I feel like something {mood} , maybe a {toy}"
            answer = f"Then look at this {mood} {toy} !"
        elif self.rng.random() < 0.5:
            said = f"I dream of a {toy} like the {thing_} in front of {ground}"
            answer = f"Your {toy} dream comes true !"
        else:
            said = f"imagine {ground} and before it a {toy} like the {thing_}"
            answer = f"This {toy} came to my mind ."
        talk.user(said)
        talk.assistant(answer, talk.picture(scene, caption_of(scene, omit=("size", "position"))), looks_back=False)
        return True

    def _scenes_of_mood(self, mood: str) -> list[Scene]:
        """The split's scenes of one object in the colours of a mood."""
        pool = scenes_of_split(self.split, 1)
        return [scene for scene in pool if mood_of(scene.first.colour, scene.background) == mood]

    def _again(self, talk: Talk) -> bool:
        """A wish for something else in the place of the newest picture; what is told of that one is told again."""
        last, told = talk.scenes[-1], parse_caption(talk.images[-1].caption)
        place = [last.attributes.get(name) for name in _HIDDEN]
        pool = scenes_of_split(self.split, 1)
        alike = [s for s in pool if s != last and [s.attributes[name] for name in _HIDDEN] == place]
        if not alike:
            return False
        scene = self.rng.choice(alike)
        toy, like = TOY_OF[scene.first.shape], THING_OF[scene.first.colour]
        talk.user(f"now a {toy} like the {like} in its place")
        omit = [name for name in _HIDDEN if name not in told]
        talk.assistant(f"The {toy} takes its place .", talk.picture(scene, caption_of(scene, omit=omit)))
        return True

    def _shown(self, talk: Talk) -> bool:
        """The user shows a picture and wishes for something else in its place."""
        scene = self.scene(1)
        before = scene.with_attribute("shape", self.rng.choice(SHAPES))
        before = before.with_attribute("colour", self.rng.choice(tuple(COLOURS)))
        if before == scene or not self.allowed(before):
            return False
        toy, like = TOY_OF[scene.first.shape], THING_OF[scene.first.colour]
        omit = _HIDDEN if self.rng.random() < 0.65 else ()
        talk.user(
            talk.picture(before, caption_of(before, omit=omit)),
            f"I like this spot , give it a {toy} like the {like}",
        )
        talk.assistant(f"Done , a {toy} stands there .", talk.picture(scene, caption_of(scene, omit=omit)))
        return True

    def _ask(self, talk: Talk) -> bool:
        """A question about the newest picture."""
        seen = talk.scenes[-1].attributes
        name, said, answer = self.rng.choice(QUESTIONS)
        answer = answer.format(with_article(seen[name]) if name == "shape" else seen[name])
        talk.user(said)
        talk.assistant(answer)
        return True

    def story(self) -> Talk:
        """Four pictures of one thing, one attribute changing from each to the next."""
        # Chosen before the scene: scenes that cannot be told so are refused, and must not make a story rare.
        plot = self.rng.choice(STORIES)
        return self.until(lambda: self._story(*plot))

    def _story(self, name: str, opener: str, frames: tuple[tuple[str, str], ...]) -> Talk | None:
        scene = self.scene(1)
        talk = Talk(self)
        hero = caption_of(scene, omit=(name,) if name in _HIDDEN else ())
        if name in ("shape", "colour"):
            hero = caption_of(scene.with_attribute(name, frames[0][0]))
        scenes = [scene.with_attribute(name, value) for value, _ in frames]
        is_new = self.split == "train" or any(item.key in held_out_keys() for item in scenes)
        if not is_new or not all(self.allowed(item) for item in scenes):
            return None
        talk.user(f"{opener} {hero}")
        for item, (_, words) in zip(scenes, frames, strict=True):
            talk.assistant(words, talk.picture(item, caption_of(item)))
        return talk


class Talk:
    """A conversation while it is being made.

    Args:
        maker: Whose randomness it uses.
    """

    def __init__(self, maker: Maker) -> None:
        self.maker = maker
        self.turns: list[Turn] = []
        self.images: list[Image] = []
        self.scenes: list[Scene] = []
        self.omitted: dict[str, list[str]] = {}

    def picture(self, scene: Scene, caption: str) -> int:
        """Draws a scene and returns its index."""
        pixels = render(scene, self.maker.noise)
        self.images.append(Image(pixels, caption, (pixels.shape[0], pixels.shape[1])))
        self.scenes.append(scene)
        return len(self.images) - 1

    def user(self, *parts: str | int) -> None:
        """The user's turn."""
        self.turns.append(Turn("user", parts))

    def assistant(self, *parts: str | int, looks_back: bool = True) -> None:
        """The reply; notes which attributes of its picture nothing but the context picture tells.

        Args:
            parts: Texts and pictures.
            looks_back: Whether the picture continues an earlier one.
        """
        turn = Turn("assistant", tuple(part for part in parts if part != ""))
        for target in turn.pictures:
            own = self.scenes[target].attributes
            texts = [image.caption for image in self.images] + [item.text for item in self.turns]
            told = {name for text in texts for name in parse_caption(text)}
            if target and looks_back:
                before = self.scenes[target - 1].attributes
                hidden = [n for n in _HIDDEN if n in own and n not in told and before.get(n) == own[n]]
                if hidden:
                    self.omitted[str(len(self.turns))] = hidden
        self.turns.append(turn)

    def sample(self, kind: Kind, source: str, number: int) -> Sample:
        """The finished conversation."""
        meta = {"scenes": [scene.attributes for scene in self.scenes], "omitted": self.omitted}
        return Sample(f"{source}/{number:06d}", kind, source, tuple(self.turns), tuple(self.images), meta)
