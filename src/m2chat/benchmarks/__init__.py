"""Benchmarks of others: M²Chat answers their questions, and writes the files that their evaluators read."""

from m2chat.benchmarks.base import Ask, Benchmark, Question, QuestionSource
from m2chat.benchmarks.geneval import GenEval
from m2chat.benchmarks.interleavedbench import InterleavedBench
from m2chat.benchmarks.isg import ISGBench
from m2chat.benchmarks.magicbrush import MagicBrush
from m2chat.benchmarks.mmie import MMIE
from m2chat.benchmarks.opening import OpenING
from m2chat.benchmarks.vist import VISTStories
from m2chat.benchmarks.weave import WEAVE
from m2chat.benchmarks.wise import WISE

BENCHMARKS: dict[str, Benchmark] = {
    "opening": OpenING(),
    "isg": ISGBench(),
    "geneval": GenEval(),
    "magicbrush": MagicBrush(),
    "mmie": MMIE(),
    "wise": WISE(),
    "vist": VISTStories(),
    "weave": WEAVE(),
    "interleavedbench": InterleavedBench(),
}
"""Kind to benchmark, as ``m2chat bench`` names them."""

__all__ = ["BENCHMARKS", "Ask", "Benchmark", "Question", "QuestionSource"]
