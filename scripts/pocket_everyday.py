"""Has the unchanged SmolLM2 answer the everyday questions from which the pocket model learns to go on talking.

    python scripts/pocket_everyday.py                       # answers every question of everyday.yaml again
    python scripts/pocket_everyday.py --questions new.txt   # answers more questions, one a line, beside those

A model that learns small talk from answers that somebody else wrote forgets how it talks itself, so these are its own
(greedy, in its chat template), up to the last whole sentence within 80 tokens; those that repeat themselves are left
out. Nobody has checked them: a model of this size is often wrong. No question of pocket_smalltalk.txt, which measures
the result, is among them. The shipped ones were computed in bfloat16, as SmolLM2 was trained (``--dtype``).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import yaml

ANSWERS = Path(__file__).parents[1] / "src/m2chat/worlds/emoji/everyday.yaml"
HEAD = """\
# Everyday questions, and what SmolLM2-135M-Instruct (Apache-2.0) answers to them: scripts/pocket_everyday.py wrote it.
# The pocket model learns from it to go on talking as it does. The answers are not checked; many are wrong.
"""
TOKENS, FEWEST = 80, 4
_SENTENCE_END = re.compile(r"(?<!\b\d)[.!?][\"')]*(?=\s|$)")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    options.add_argument("--questions", type=Path, help="more of them, one a line; the others keep theirs")
    options.add_argument("--smollm2", type=Path, default=Path("data/smollm2"), help="default: %(default)s")
    options.add_argument("--batch", type=int, default=16, help="questions at a time (default: %(default)s)")
    options.add_argument("--dtype", default="float32", help="float32 or bfloat16 (default: %(default)s)")
    return options


def whole_sentences(text: str) -> str:
    """A text up to its last whole sentence; empty if there is none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends else ""


def repeats_itself(text: str) -> bool:
    """Whether three of ten pairs of neighbouring words have occurred before in the text."""
    words = re.findall(r"[\w']+", text.lower())
    pairs = list(pairwise(words))
    return len(pairs) > 8 and len(set(pairs)) / len(pairs) < 0.7


def answers(folder: Path, questions: Sequence[str], batch: int, dtype: str) -> list[str]:
    """SmolLM2's answers; empty where it ends no sentence in time, hardly says anything, or repeats itself."""
    from m2chat._compat import ensure_torchvision

    ensure_torchvision()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    found = []
    for start in range(0, len(questions), batch):
        talks = [[{"role": "user", "content": text}] for text in questions[start : start + batch]]
        prompts = [tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False) for talk in talks]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        for row in output[:, inputs["input_ids"].shape[1] :].tolist():
            ends = tokenizer.eos_token_id in row
            text = tokenizer.decode(row, skip_special_tokens=True).strip()
            text = text if ends else whole_sentences(text)
            found.append("" if len(tokenizer.encode(text)) < FEWEST or repeats_itself(text) else text)
        print(f"{min(start + batch, len(questions))} of {len(questions)} questions", flush=True)
    return found


def main() -> None:
    """Answers, and writes the file."""
    options = parser().parse_args()
    kept: dict[str, str] = yaml.safe_load(ANSWERS.read_text(encoding="utf-8")) if ANSWERS.is_file() else {}
    questions = list(kept)
    if options.questions is not None:
        lines = options.questions.read_text(encoding="utf-8").splitlines()
        questions = [line for line in dict.fromkeys(lines) if line and line not in kept]
    pairs = zip(questions, answers(options.smollm2, questions, options.batch, options.dtype), strict=True)
    kept = {question: answer for question, answer in (kept | dict(pairs)).items() if answer}
    text = yaml.safe_dump(kept, allow_unicode=True, sort_keys=False, width=110)
    ANSWERS.write_text(HEAD + text, encoding="utf-8")
    print(f"{ANSWERS}: {len(kept)} questions have an answer; {len(questions)} were asked now")


if __name__ == "__main__":
    main()
