"""Conversations of the emoji world: requests, wishes, small talk, questions, edits, dialogues, stories.

In half of the edits, dialogues and stories the captions leave out style and skin tone (``meta["omitted"]``), which then
only the context picture shows; their full captions, the targets of L_align, name them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import replace

from m2chat.errors import UserError
from m2chat.schema import Kind, Sample
from m2chat.worlds.emoji.builder import HIDDEN, Builder
from m2chat.worlds.emoji.edits import change_in_family, change_of_person
from m2chat.worlds.emoji.families import families, poses, roles, stories
from m2chat.worlds.emoji.names import phrase_of, with_article
from m2chat.worlds.emoji.phrases import KIND_OF_GROUP, everyday, phrases
from m2chat.worlds.emoji.scenes import LICENSES, STYLES, Scene
from m2chat.worlds.emoji.subjects import TRIES, Subjects, filled

DATA_SETS = (
    "instruct", "wish", "smalltalk", "ask", "edit", "similar", "dialogue", "mixed", "story", "unknown",
)  # fmt: skip
_EVERYDAY = 0.6
"""Share of small talk that is a question with SmolLM2's own answer; half as much behind other turns."""
_OTHER_NAMES = 0.35
"""Share of the things asked for or mentioned that go by a keyword or by another name."""
_UNNAMED = "a picture"
"""Caption of a shown picture that is to be looked at."""
_DIALOGUES = (
    "instruct similar", "wish similar", "moment restyle", "instruct restyle", "shown similar", "shown restyle",
    "wish moment", "moment moment", "shown ask", "instruct ask", "edit restyle", "instruct unknown",
    "described restyle", "occasion moment",
)  # fmt: skip
"""Steps of a dialogue beside one of words alone."""
_MIXED = (
    "edit edit",
    "wish story",
    "moment edit",
    "edit ask",
    "shown edit",
    "edit similar",
    "instruct story",
    "unknown edit",
)
"""The same for dialogues with edits and stories."""


class ConversationMaker(Subjects):
    """Makes conversations of one split; its settings are those of `Subjects`."""

    def make(self, name: str, number: int) -> Sample:
        """Sample of a data set.

        Args:
            name: One of `DATA_SETS`.
            number: Number of the sample in it.

        Raises:
            UserError: If no such conversation fits the pictures.
        """
        kinds: dict[str, Kind] = {"instruct": "instruct", "edit": "edit", "story": "story"}
        for _ in range(TRIES):
            with contextlib.suppress(LookupError):
                if (talk := self._try(name)) is not None:
                    break
        else:
            raise UserError(f"no conversation of the kind {name} fits these pictures: add pictures to the world")
        licences = sorted({LICENSES[scene.style] for scene in talk.scenes})
        return talk.sample(kinds.get(name, "dialogue"), name, number, license=" and ".join(licences))

    def _try(self, name: str) -> Builder | None:
        talk = self.builder()
        if name == "edit":
            rounds = self.rng.choice((1, 2, 2, 3))
            return talk if all(self._take("edit", talk) for _ in range(rounds)) else None
        if name in ("dialogue", "mixed"):
            plan = self.rng.choice(_DIALOGUES if name == "dialogue" else _MIXED).split()
            plan.insert(self.rng.randrange(3), "smalltalk")
        elif name == "smalltalk" and self.rng.random() < 0.4:
            plan = [self.one("wish", "instruct", "moment", "described"), "smalltalk"]
        else:
            wish = self.one("wish", "moment", "described", "described", "occasion")
            plans = {"wish": [wish], "ask": ["shown_ask"], "similar": ["shown", "similar"]}
            plan = plans.get(name, [name])
        return talk if all(self._take(step, talk) for step in plan) else None

    def _take(self, step: str, talk: Builder) -> bool:
        """Adds a step; whether it fits."""
        talk.step = step
        taken: bool = getattr(self, f"_{step}")(talk)
        return taken

    def _reply(
        self, talk: Builder, answer: str, scene: Scene, omit: Sequence[str] = (), looks_back: bool = True
    ) -> bool:
        caption = self.caption(scene, omit)
        picture = talk.picture(scene, caption)
        if picture and looks_back:
            before = talk.scenes[picture - 1].attributes
            full = self.caption(scene, [name for name in omit if before[name] != scene.attributes[name]])
            if full != caption:
                talk.images[picture] = replace(talk.images[picture], full_caption=full)
        talk.assistant(answer, picture, looks_back=looks_back)
        return True

    def _instruct(self, talk: Builder) -> bool:
        """A request that names what to draw, with the style in half of the cases."""
        scene = self.scene(plain=0.6)
        if scene is None:
            return False
        omit = () if self.rng.random() < 0.5 else ("style",)
        phrase, short = self.caption(scene, omit), self.caption(scene, ("style",))
        if name := self._by_other_name(talk, scene):
            phrase = name if omit else f"{name} in {STYLES[scene.style]} style"
        talk.user(self.typed(lambda: self.words("requests", np=phrase)))
        return self._reply(talk, self.answer("request_answers", short), scene, omit, looks_back=False)

    def _by_other_name(self, talk: Builder, scene: Scene) -> str | None:
        """Another name or a keyword of a scene, in some cases: what is right depends on which, and so does the step."""
        if not scene.is_plain or self.rng.random() > _OTHER_NAMES:
            return None
        if self.rng.random() < 0.8 and (name := self.other_name(scene)):
            talk.step = "described"
            return name
        if word := self.keyword(scene):
            talk.step = "wish"
            talk.keywords[str(len(talk.turns) + 1)] = [word]
            return word if word.endswith("s") else with_article(word)
        return None

    def _described(self, talk: Builder) -> bool:
        """Something is asked for by what it is, does or looks like."""
        scene, phrase = self.described("descriptions")
        bare = self.rng.random() < 0.25
        talk.user(self.typed(lambda: phrase if bare else self.words("requests", np=phrase)))
        return self._in_answer(talk, scene)

    def _occasion(self, talk: Builder) -> bool:
        """A remark that a picture answers."""
        scene, remark = self.described("remarks")
        talk.user(self.typed(lambda: remark))
        return self._in_answer(talk, scene)

    def _in_answer(self, talk: Builder, scene: Scene) -> bool:
        phrase = self.caption(scene, ("style",))
        return self._reply(talk, self.answer("wish_answers", phrase), scene, ("style",), looks_back=False)

    def _wish(self, talk: Builder) -> bool:
        """A wish that names keywords alone."""
        scene = self.plain()
        words = [word for word in scene.keywords if word.lower() not in scene.label.lower()]
        if len(words) < 2:
            return False
        k, l = self.rng.sample(words, 2)  # noqa: E741
        talk.user(text := self.typed(lambda: self.words("wishes", k=k, l=l)))
        talk.keywords[str(len(talk.turns))] = [k, l] if l.lower() in text.lower() else [k]
        return self._in_answer(talk, scene)

    def _moment(self, talk: Builder) -> bool:
        """Something that is mentioned by the way, and a picture of it."""
        scene = self.plain()
        kind = next((k for begin, k in KIND_OF_GROUP.items() if scene.subgroup.startswith(begin)), None)
        if kind is None and scene.group in ("objects", "activities"):
            kind = "thing"
        if kind is None or ":" in scene.label:
            return False
        phrase, noun = self.caption(scene, ("style",)), scene.label
        if name := self._by_other_name(talk, scene):
            noun = re.sub("^(an?|the) ", "", name)
        mention = name or phrase
        talk.user(self.typed(lambda: filled(self.one(*phrases()["moments"][kind]), mention, noun=noun)))
        return self._reply(talk, self.answer("moment_answers", phrase), scene, ("style",), looks_back=False)

    def _smalltalk(self, talk: Builder) -> bool:
        """Something that is answered in words alone: what people say to each other, or a question about anything."""
        if self.rng.random() < (_EVERYDAY if not talk.turns else _EVERYDAY / 2):
            question, answer = self.rng.choice(everyday())
            talk.user(self.typed(lambda: question))
        else:
            pair = self.rng.choice(phrases()["small_talk"])
            talk.user(self.typed(lambda: self.one(*pair["said"])))
            answer = self.one(*pair["answers"])
        talk.assistant(answer)
        return True

    def _unknown(self, talk: Builder) -> bool:
        """A request for something that has no picture in this world: it is said so, and nothing is drawn."""
        noun = self.one(*self.unknown)
        phrase = noun if noun.startswith("the ") else phrase_of(noun)
        talk.user(self.typed(lambda: self.words("requests", np=phrase)))
        talk.assistant(self.answer("unknown_answers", phrase))
        return True

    def _shown(self, talk: Builder, ask: bool = False) -> bool:
        """The user shows a picture and asks about it."""
        scene = self.scene(plain=0.7)
        if scene is None:
            return False
        caption = _UNNAMED if ask and self.rng.random() < 0.5 else self.caption(scene, self._omitted())
        return self._question(talk, scene, talk.picture(scene, caption))

    def _shown_ask(self, talk: Builder) -> bool:
        """The same, where in half of the cases nothing but the picture says what it shows."""
        return self._shown(talk, ask=True)

    def _omitted(self) -> Sequence[str]:
        return HIDDEN if self.rng.random() < 0.5 else ()

    def _ask(self, talk: Builder) -> bool:
        """A question about the newest picture."""
        return bool(talk.scenes) and self._question(talk, talk.scenes[-1])

    def _question(self, talk: Builder, scene: Scene, *shown: int) -> bool:
        words = [word for word in scene.keywords if word.lower() not in scene.label.lower()]
        kinds = ["name", "name", "style", *(["keyword"] if len(words) > 2 else [])]
        kind = self.one(*kinds)
        talk.step = f"ask_{kind}"
        talk.user(*shown, self.typed(lambda: self.words(f"ask_{kind}")))
        if kind == "name":
            answer = self.answer("name_answers", self.caption(scene, ("style",)))
        elif kind == "style":
            answer = self.words("style_answers", style=STYLES[scene.style])
        else:
            first = self.rng.sample(words, 3)
            answer = self.words("keyword_answers", ks=f"{first[0]}, {first[1]} and {first[2]}")
        talk.assistant(answer)
        return True

    def _restyle(self, talk: Builder) -> bool:
        """The newest picture in another style."""
        if not talk.scenes:
            return False
        last = talk.scenes[-1]
        after = self.there(replace(last, style=self.one(*(style for style in STYLES if style != last.style))))
        if after is None:
            return False
        name = STYLES[after.style]
        talk.user(self.typed(lambda: self.words("restyle", style=name)))
        return self._reply(talk, self.words("restyle_answers", style=name), after)

    def _similar(self, talk: Builder) -> bool:
        """Another picture of the newest one's kind, in its style."""
        if not talk.scenes:
            return False
        last = talk.scenes[-1]
        others = [s for s in self._of_subgroup.get((last.subgroup, last.style), ()) if s.concept != last.concept]
        if not others:
            return False
        scene = self.rng.choice(others)
        talk.user(self.typed(lambda: self.words("similar")))
        answer = self.answer("similar_answers", self.caption(scene, ("style",)))
        return self._reply(talk, answer, scene, talk.unnamed())

    def _edit(self, talk: Builder) -> bool:
        """A change of the newest picture, or of one that the user shows."""
        if talk.scenes:
            return self._change(talk, talk.scenes[-1], talk.unnamed())
        before = self._editable()
        if before is None:
            return False
        omit = self._omitted()
        return self._change(talk, before, omit, talk.picture(before, self.caption(before, omit)))

    def _editable(self) -> Scene | None:
        """A scene that an instruction can change."""
        if self.rng.random() < 0.3:
            return self.scene(self.one(*poses(), *roles(), "person"), plain=0.3)
        family = self.rng.choice(families())
        return self.scene(self.one(*family.members.values()))

    def _change(self, talk: Builder, before: Scene, omit: Sequence[str], *shown: int) -> bool:
        change = self.rng.choice((change_in_family, change_of_person))(before, self.there, self.rng)
        if change is None:
            return False
        after = change.after
        talk.user(*shown, self.typed(lambda: self.one(*change.instructions)))
        changed = [name for name in HIDDEN if before.attributes[name] != after.attributes[name]]
        return self._reply(talk, self.one(*change.answers), after, [name for name in omit if name not in changed])

    def _story(self, talk: Builder) -> bool:
        """Four pictures in one style; the user gives the first line."""
        story = self.rng.choice(stories())
        style = self.one(*STYLES)
        scenes = [self.scene(concept, style, plain=1.0) for concept, _ in story.frames]
        omit = ("style",) if self.rng.random() < 0.5 else ()
        manner = "" if omit else f" in {STYLES[style]} style"
        talk.user(self.typed(lambda: self.one(*story.openers) + manner))
        for frame, (scene, (_, sentences)) in enumerate(zip(scenes, story.frames, strict=True)):
            if scene is None:
                return False
            self._reply(talk, self.one(*sentences), scene, omit, looks_back=frame > 0)
        return True
