"""`m2chat bench`: answers the questions of published benchmarks, and scores answers without a judge."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2chat.commands.arguments import CONFIG, existing, in_range, new_folder
from m2chat.commands.common import device_of, load_pipeline
from m2chat.commands.options import add_model_options, add_size_options, how_to_draw
from m2chat.errors import UserError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator, Sequence

    from m2chat.benchmarks import Benchmark, Question
    from m2chat.schema import Prediction

KINDS = ("opening", "isg", "geneval", "magicbrush", "mmie", "wise", "vist", "weave", "interleavedbench")
SCORES = "scores"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "bench",
        help="answer a published benchmark, and write the files that its evaluator reads",
        description="Answers go to OUT/answers while they are generated; the same command goes on after an "
        "interruption. When all questions are answered, OUT/files holds what the benchmark's evaluator reads, and "
        "OUT/scores an evaluation with the metrics that need no judge, for `m2chat eval compare` and `page`.",
    )
    parser.add_argument("kind", metavar="KIND", choices=KINDS, help="one of %(choices)s")
    parser.add_argument(
        "src",
        type=existing(remedy="name the benchmark's questions"),
        metavar="SRC",
        help="folder or file of the benchmark's questions",
    )
    parser.add_argument("out", type=new_folder, metavar="OUT", help="folder of this run")
    parser.add_argument("--name", default="m2chat", help="name of the system in the files (default: %(default)s)")
    parser.add_argument("--pictures", type=existing("folder"), metavar="FOLDER",
                        help="folder to which the paths of the questions' "
                        "pictures are relative (default: that of the questions)")  # fmt: skip
    parser.add_argument("--allow-missing", action="store_true", help="ask without the pictures that are missing, "
                        "and leave out questions that cannot be asked")  # fmt: skip
    parser.add_argument(
        "--limit", type=in_range("count"), metavar="N", help="the first N questions only, of geneval N pictures"
    )
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="answer every N-th question from the I-th on, "
                        "into the same OUT as the other shards (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--samples", type=in_range("count"), default=4, help="pictures a prompt, of geneval (default: %(default)s)"
    )
    parser.add_argument("--seed", type=in_range("seed"), default=0, help="seed of all answers (default: %(default)s)")
    parser.add_argument("--image", choices=("auto", "force", "never"), default="auto", help="whether replies have "
                        "pictures, where the benchmark leaves it to the model (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--max-images", type=in_range("max_images"), default=10, help="pictures a reply at most (default: %(default)s)"
    )
    parser.add_argument("--max-new-tokens", type=in_range("max_new_tokens"), default=256, metavar="N",
                        help="length of an answer at most, in "
                        "tokens (default: %(default)s)")  # fmt: skip
    parser.add_argument("--steps", type=in_range("steps"), help="denoising steps (default: those of --preset, or 25)")
    parser.add_argument(
        "--guidance", type=in_range("guidance"), help="guidance scale (default: that of --preset, or 5)"
    )
    add_size_options(parser)
    parser.add_argument("--outputs", type=existing(), metavar="PATH", help="score what another system has left in this "
                        "benchmark's form, instead of answering")  # fmt: skip
    parser.add_argument("--config", type=existing("file", CONFIG), metavar="YAML",
                        help="configuration with metrics, such as "
                        "configs/paper/eval_mmdialog.yaml (default: KIND's, with the micro networks)")  # fmt: skip
    parser.add_argument("--no-score", action="store_true", help="write the evaluator's files only")
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Answers, writes, scores.

    Raises:
        UserError: If the questions cannot be read, pictures of them are missing, or OUT holds answers of another kind.
    """
    from m2chat.benchmarks import BENCHMARKS, QuestionSource
    from m2chat.benchmarks.engine import FILES, askable, missing_pictures, not_drawn, write_files
    from m2chat.files import locked

    benchmark = BENCHMARKS[options.kind]
    if options.outputs is not None and options.no_score:
        raise UserError("--outputs and --no-score: other systems' outputs are read to be scored; leave one of them out")
    questions = benchmark.questions(QuestionSource(options.src, options.pictures, options.samples))[: options.limit]
    if options.image != "auto" and all(ask.draw or ask.image != "auto" for item in questions for ask in item.asks):
        raise UserError(
            f"--image {options.image}: {benchmark.title} itself decides where pictures are due: leave it out"
        )
    known, missing, first = missing_pictures(questions)
    metrics = [] if options.no_score else _metrics(benchmark, options.config)  # a mistake there costs no answers
    if options.outputs is not None:
        questions, left_out = askable(questions, True, missing=False)
        _print_left_out(left_out)
        _score(benchmark, questions, options.outputs, metrics, options, left_out.total())
        return
    if missing and not options.allow_missing:
        raise UserError(
            f"{missing} of {known} pictures of the questions are missing, the first is {first}: name their folder by "
            "--pictures, or ask without them by --allow-missing"
        )
    questions, left_out = askable(questions, options.allow_missing)
    rows = _answers(benchmark, questions, options)
    done = sum(question.id in rows for question in questions)
    if done < len(questions):
        print(f"{done} of {len(questions)} questions are answered: run the other shards into {options.out}")
        return
    with locked(options.out / FILES):  # another shard may end at the same time
        folder = write_files(benchmark, questions, rows, options.out, options.name)
        print(f"{folder}: {benchmark.hint.format(name=options.name, n=len(questions))}")
        if missing:
            print(f"{missing} pictures of the questions were missing: the scores are not those of the benchmark")
        _print_left_out(left_out)
        if lacking := not_drawn(questions, rows):
            print(f"{lacking} replies have no picture although one was due; their captions reached the limit")
        if not options.no_score:
            _score(benchmark, questions, folder, metrics, options, left_out.total())


def _print_left_out(reasons: Counter[str]) -> None:
    """Prints how many questions are left out, by reason."""
    for reason, count in reasons.most_common():
        print(f"{count} questions cannot be asked and are left out: {reason}")


def _answers(benchmark: Benchmark, questions: Sequence[Question], options: argparse.Namespace) -> dict[str, Any]:
    """Answers a shard; returns the answers of all shards so far."""
    from m2chat.benchmarks.base import name_of
    from m2chat.benchmarks.engine import AnswerSettings, answer_questions
    from m2chat.shares import Share

    name_of(options.name, "--name")
    shard = Share.of(options.shard)
    settings = AnswerSettings(
        options.seed, options.image, options.max_images, options.max_new_tokens, how_to_draw(options)
    )
    rows = answer_questions(load_pipeline(options), benchmark.title, questions, options.out, settings, shard)
    return dict(rows)


def _score(
    benchmark: Benchmark,
    questions: Sequence[Question],
    outputs: Path,
    metrics: Sequence[Any],
    options: argparse.Namespace,
    left_out: int,
) -> None:
    """Scores a folder of outputs into OUT, and prints the result; `left_out` questions are none of them."""
    from m2chat.benchmarks.base import is_there
    from m2chat.benchmarks.engine import predictions_of_files
    from m2chat.commands.evaluation.folder import score_predictions
    from m2chat.evaluation.page import report
    from m2chat.evaluation.results import RESULTS
    from m2chat.files import locked, whole_folder

    if not outputs.exists():
        raise UserError(f"--outputs: there is no {outputs}")
    protocol: dict[str, Any] = {"dataset": benchmark.title, "stage": options.name, "weights": str(outputs)}
    if options.outputs is None:
        protocol["weights"] = str(options.model or "shipped")
        names = ("seed", "steps", "guidance", "image", "max_images", "max_new_tokens", "allow_missing")
        protocol |= {name: getattr(options, name) for name in names}
    protocol |= {"left_out": left_out} if left_out else {}
    pictures = [picture for question in questions for ask in question.asks for picture in ask.reference_pictures]
    if lost := sum(not is_there(picture) for picture in pictures):
        # InterRel and MM-Relevance go by the place of an element in the reply, which the lacking ones would shift.
        unfit = [metric for metric in metrics if metric.key == "inter_rel"]
        metrics = [metric for metric in metrics if metric not in unfit]
        without = "; InterRel, which needs all of them, is left out" if unfit else ""
        print(f"{lost} of {len(pictures)} reference pictures are missing (--pictures names their folder){without}")
    for metric in metrics:
        if metric.network is not None:
            metric.network.to(device_of(options))
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / SCORES
    with locked(target), whole_folder(target, replace=True) as folder:
        # Of M²Chat's outputs, what is not there was not drawn; of another system's, it was perhaps never asked.
        absent = None if options.outputs is None else list[str]()

        def predictions() -> Iterator[Prediction]:
            yield from predictions_of_files(benchmark, questions, outputs, options.name, absent)
            protocol.update({"answers_absent": len(absent)} if absent else {})  # it is written after the last one

        score_predictions(predictions(), folder, metrics, protocol)
    print(report(target / RESULTS))
    if absent:
        due = sum(len(question.asks) for question in questions)
        print(f"{len(absent)} of {due} answers are not in {outputs} and left out of the scores, the first: {absent[0]}")


def _metrics(benchmark: Benchmark, config: Path | None) -> list[Any]:
    """The metrics of a configuration, or else the benchmark's with the micro world's networks."""
    from m2chat.commands.evaluation.folder import metrics_of

    if config is not None:
        return metrics_of(config)[0]
    from m2chat.callbacks.clip_score import CLIPScore
    from m2chat.callbacks.edit import EditScores
    from m2chat.callbacks.fid import FID
    from m2chat.callbacks.inter_rel import InterRel
    from m2chat.callbacks.structure import Structure
    from m2chat.callbacks.text_overlap import TextOverlap
    from m2chat.metrics.encoders import OpenClipEncoder
    from m2chat.metrics.extractors import MicroExtractor
    from m2chat.shipped import folder_of

    root = folder_of("micro")  # the command may run anywhere
    encoder = OpenClipEncoder(str(root / "metric_clip"))
    kinds: dict[str, Callable[[], Any]] = {
        "CLIPScore": lambda: CLIPScore(encoder),
        "EditScores": lambda: EditScores(encoder),
        "FID": lambda: FID(MicroExtractor(str(root / "fid"))),
        "InterRel": lambda: InterRel(encoder),
        "Structure": Structure,
        "TextOverlap": TextOverlap,
    }
    return [kinds[name]() for name in benchmark.metrics]
