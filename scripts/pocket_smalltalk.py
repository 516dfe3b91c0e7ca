"""Can the pocket model still talk? Its replies to everyday questions beside those of SmolLM2, on which it was trained.

    python scripts/pocket_smalltalk.py --out smalltalk.json --into docs/pocket.md

Both reply greedily to the same questions (pocket_smalltalk.txt), with at most 64 tokens. The unchanged SmolLM2 then
gives the likelihood of either reply's tokens; beside it stand lengths, distinct n-grams, and the number of replies with
a picture, which no question here asks for. The document's section shows every fourth question with both replies.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2chat.commands.arguments import in_range, new_file
from m2chat.commands.options import add_model_options

QUESTIONS = Path(__file__).with_suffix(".txt")
MARK = "smalltalk"
"""Name of the marks in a document between which the section stands."""
TOKENS = 64


def parser() -> argparse.ArgumentParser:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    options.add_argument(
        "--questions", type=Path, default=QUESTIONS, help="one a line (default: 200 beside the script)"
    )
    options.add_argument("--count", type=in_range("count"), help="the first questions alone (default: all)")
    options.add_argument("--smollm2", type=Path, default=Path("data/smollm2"), help="default: %(default)s")
    options.add_argument("--base-only", action="store_true", help="SmolLM2 alone, while there is no pocket model")
    options.add_argument("--out", type=new_file, help="JSON with every figure and reply")
    options.add_argument("--into", type=Path, help="document that gets the section, such as docs/pocket.md")
    add_model_options(options)
    return options


class Base:
    """SmolLM2 as it is: replies, and says how likely a reply is.

    Args:
        folder: Its folder.
    """

    def __init__(self, folder: Path) -> None:
        from m2chat._compat import ensure_torchvision

        ensure_torchvision()
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def prompt(self, question: str) -> list[int]:
        """Tokens of a question in its chat template."""
        talk = [{"role": "user", "content": question}]
        text = self.tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def tokens(self, reply: str) -> list[int]:
        """Tokens of a reply."""
        return list(self.tokenizer.encode(reply, add_special_tokens=False))

    def reply(self, question: str) -> str:
        """Its greedy reply."""
        import torch

        ids = torch.tensor([self.prompt(question)])
        stop = self.tokenizer.eos_token_id
        with torch.inference_mode():
            output = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False, pad_token_id=stop
            )
        return str(self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()

    def log_likelihood(self, question: str, reply: str) -> tuple[float, int]:
        """Logarithm of the reply's probability, and its tokens."""
        import torch

        before, tokens = self.prompt(question), self.tokens(reply)
        if not tokens:
            return 0.0, 0
        with torch.inference_mode():
            logits = self.model(torch.tensor([before + tokens])).logits[0, len(before) - 1 : -1]
            values = logits.log_softmax(-1)[range(len(tokens)), tokens]
        return float(values.sum()), len(tokens)


def distinct(replies: Sequence[str], n: int) -> float:
    """Share of the n-grams of words that occur for the first time."""
    grams: list[tuple[str, ...]] = []
    for reply in replies:
        words = re.findall(r"[\w']+", reply.lower())
        grams += zip(*(words[k:] for k in range(n)), strict=False)
    return len(set(grams)) / len(grams) if grams else 0.0


def figures(base: Base, questions: Sequence[str], replies: Sequence[str]) -> dict[str, float]:
    """Likelihood, length and variety of replies."""
    sums = [base.log_likelihood(*pair) for pair in zip(questions, replies, strict=True)]
    tokens = sum(count for _, count in sums)
    mean = sum(value for value, _ in sums) / max(tokens, 1)
    return {
        "log-likelihood of a token": round(mean, 4),
        "likelihood of a token": round(math.exp(mean), 4),
        "mean tokens": round(tokens / len(replies), 2),
        "cut at the limit": sum(count >= TOKENS - 1 for _, count in sums),
        **{f"distinct-{n}": round(distinct(replies, n), 4) for n in (1, 2, 3)},
    }


def section(rows: Sequence[dict[str, Any]], facts: dict[str, Any], model: str) -> str:
    """The document's section: the figures, then every fourth question with both replies."""

    def cell(text: str) -> str:
        return " ".join(text.split()).replace("|", "\\|")

    both = [name for name in ("SmolLM2", "pocket") if name in facts]
    lines = [f"| of {len(rows)} questions | {' | '.join(both)} |", "|---|" + "--:|" * len(both)]
    lines += [f"| {key} | {' | '.join(str(facts[name][key]) for name in both)} |" for key in facts["SmolLM2"]]
    if "pocket" in facts:
        lines += ["", f"Likelihood of a token, pocket over SmolLM2: {facts['ratio']}; replies with a picture: "
                      f"{facts['replies with a picture']}. Weights: {model}."]  # fmt: skip
    lines += ["", f"Every fourth question, with the first {TOKENS} tokens of each reply:", ""]
    lines += [f"| question | {' | '.join(both)} |", "|---|" + "---|" * len(both)]
    lines += [f"| {cell(row['question'])} | {' | '.join(cell(row[name]) for name in both)} |" for row in rows[::4]]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Has both reply, measures, and writes what is wanted."""
    options = parser().parse_args()
    from m2chat.commands.common import load_pipeline
    from m2chat.errors import UserError
    from m2chat.evaluation.markup import write_section

    if not (options.smollm2 / "config.json").is_file():
        raise UserError(f"there is no language model in {options.smollm2}: `make smollm2` brings it")
    questions = options.questions.read_text(encoding="utf-8").splitlines()[: options.count]
    base = Base(options.smollm2)
    rows: list[dict[str, Any]] = [{"question": text, "SmolLM2": base.reply(text)} for text in questions]
    facts: dict[str, Any] = {"SmolLM2": figures(base, questions, [row["SmolLM2"] for row in rows])}
    model = ""
    if not options.base_only:
        pipe = load_pipeline(options, "pocket")
        model, pictures = str(pipe.origin.path), 0
        for start in range(0, len(questions), 20):
            for row, output in zip(
                rows[start:], pipe(questions[start : start + 20], max_new_tokens=TOKENS), strict=False
            ):
                row["pocket"], row["pictures"] = output.text.strip(), len(output.images)
                pictures += bool(output.images)
        facts["pocket"] = figures(base, questions, [row["pocket"] for row in rows])
        ratio = facts["pocket"]["likelihood of a token"] / facts["SmolLM2"]["likelihood of a token"]
        facts |= {"ratio": round(ratio, 3), "replies with a picture": pictures}
    print(json.dumps(facts, indent=1))
    if options.out:
        text = json.dumps({"weights": model, **facts, "replies": rows}, indent=1, ensure_ascii=False)
        options.out.write_text(text + "\n", encoding="utf-8")
    if options.into:
        write_section(options.into, section(rows, facts, model), MARK)


if __name__ == "__main__":
    from m2chat.errors import UserError

    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
