"""How fast the guide's flow, the default and the U-Net train and sample.   python -m experiments.benchmarks.guide

    ratio = value / value of the default in the same round      min, median and max over the rounds

In each round every quantity is measured of all contenders, one right after the other, in one process: a machine that
is slower for a while is slower for all of them, and the ratio stays. Training is `training.run.train` itself,
without validation; samples are drawn from the checkpoint that it leaves. Written to --out: guide_<dataset>.csv, .md
and .png.
"""

import contextlib
import io
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.benchmarks import contenders
from experiments.benchmarks.speeds import DEFAULT, EPOCH, IMAGES, SAMPLING, Measure, report
from experiments.common import budget, options
from experiments.common.columns import Row, machine_words
from experiments.common.configurations import train
from experiments.common.results import describe_machine
from experiments.common.spread import Spread
from flowdiff.commands import cli
from flowdiff.data.labels import resolve_labels
from flowdiff.errors import ConfigError, FlowdiffError, at_least, positive
from flowdiff.model.api import Model, load
from flowdiff.model.opening import build_data
from flowdiff.samplers.batched import seeds_from

STEPS = (10, 20, 50, 100)
SAMPLES = 100
WINDOW = 4  # steps between two rows of the log
WARM_UP = 2  # windows that are not timed
#: Of every training. The seconds end it, after at least two timed windows (min_steps alone would ask for an epoch).
TRAINING = (
    *("callbacks=minimal", "logger=csv", "evaluate=null", "trainer.limit_val_batches=0"),
    *(f"trainer.log_every_n_steps={WINDOW}", "trainer.max_steps=1000000"),
    *(f"+trainer.min_steps={WINDOW * (WARM_UP + 2)}", "+trainer.min_epochs=0"),
)


def commands(dataset: str) -> dict[str, list[str]]:
    """The words of `flowdiff.train` for each contender. The U-Net is that of the other benchmarks."""
    (unet,) = [c for c in contenders.contenders(dataset, 0, 0) if c.name == "unet"]
    guide = {"digits": ["dataset=digits", "flow.data_dim=64"], "mnist": []}[dataset]
    return {
        "guide": ["experiment=guide_mnist", *guide],
        DEFAULT: [f"experiment={dataset}"],
        "unet": [f"experiment={dataset}", *unet.settings],
    }


@dataclass
class Benchmark:
    """All measurements of one dataset.

    Attributes:
        dataset: digits or mnist.
        seconds: of each training, its warm-up counted.
        steps: of the ancestral sampler, one number after the other.
        seed: of the trainings, and of the first sample.
        values: what was measured of a contender, a number a round.
        counts: evaluations that a sample took.
        facts: a line on each contender.
    """

    dataset: str
    seconds: float
    steps: Sequence[int]
    seed: int
    values: dict[tuple[Measure, str], list[float]] = field(default_factory=lambda: defaultdict(list), init=False)
    counts: dict[tuple[Measure, str], dict[str, Any]] = field(default_factory=dict, init=False)
    facts: dict[str, str] = field(default_factory=dict, init=False)

    def round(self, folder: Path) -> None:
        """Measure everything once, with the runs in `folder`."""
        models = {}
        for name, words in commands(self.dataset).items():
            model, speed, batch = self.train(words, folder / name)
            models[name] = model
            self.values[Measure(IMAGES), name].append(speed)
            if name not in self.facts:
                size = sum(p.numel() for p in model.parameters())
                command = f"`python -m flowdiff.train {' '.join(words)}`"
                self.facts[name] = f"{name}: {command}, {size:,} parameters, batches of {batch}"
        images = len(build_data(models[DEFAULT].config["dataset"]).images("train")[0])
        for name in models:
            self.values[Measure(EPOCH), name].append(images / self.values[Measure(IMAGES), name][-1])
            models[name].sample(SAMPLES, sampler="ancestral", num_steps=1, quiet=True)  # the first call is slower
        for measure in (*(Measure(SAMPLING, "ancestral", n) for n in self.steps), Measure(SAMPLING, "inversion")):
            for name, model in models.items():
                if model.has_inverse or measure.sampler == "ancestral":
                    self.time_samples(measure, name, model)

    def train(self, words: Sequence[str], run: Path) -> tuple[Model, float, int]:
        """The model of a short training, its images per second after the warm-up, and images in a step."""
        settings = [*TRAINING, f"seed={self.seed}", f"trainer.max_time={{seconds:{self.seconds}}}", f"run_dir='{run}'"]
        with contextlib.redirect_stdout(io.StringIO()):
            last = train([*words, *settings], said=words)["last"]
        taken, logged = budget.read_windows(run)
        timed, batch = taken[WARM_UP:], budget.batch_size(run)
        return load(last), batch * logged * len(timed) / sum(timed), batch

    def time_samples(self, measure: Measure, name: str, model: Model) -> None:
        """Seconds for `SAMPLES` samples, and the evaluations that the library counted."""
        batched = model.batched(measure.sampler, num_steps=measure.steps)
        labels, seeds = resolve_labels("balanced", SAMPLES, model.num_classes), seeds_from(self.seed, SAMPLES)
        start = time.perf_counter()
        drawn = batched.draw(labels, seeds, quiet=True)
        self.values[measure, name].append(time.perf_counter() - start)
        self.counts[measure, name] = {"nfe": drawn.nfe, **drawn.evaluations}

    def rows(self) -> list[Row]:
        """A row for each measure of each contender, with its spread and that of its ratio to the default."""
        found = []
        for (measure, name), values in self.values.items():  # in the order of measuring
            reference = self.values[measure, DEFAULT]
            ratios = [value / other for value, other in zip(values, reference, strict=True)]
            row: Row = {"model": name, "measure": measure, "value": Spread.of(values), "ratio": Spread.of(ratios)}
            found.append(row | self.counts.get((measure, name), {}))
        return found


def whole_numbers(text: str) -> list[int]:
    """`"10,20,50"` as numbers from 1 up.

    Raises:
        ConfigError: it is something else.
    """
    try:
        return [at_least("--steps", int(word), 1) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError("--steps", text, "must be integers >= 1 with commas, as in 10,20,50") from error


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    out = Path(__file__).with_name("results")
    parser = options.benchmark_parser("experiments.benchmarks.guide", __doc__, 6.0, out)
    parser.add_argument("--dataset", choices=contenders.DATASETS, default="digits")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--steps", default=",".join(map(str, STEPS)), help="of the sampler, with commas")
    given = parser.parse_args(words)
    cli.quiet()
    try:
        positive("--seconds", given.seconds)
        at_least("--repeats", given.repeats, 1)
        benchmark = Benchmark(given.dataset, given.seconds, whole_numbers(given.steps), given.seed)
        machine = describe_machine()
        for number in range(given.repeats):
            print(f"round {number + 1} of {given.repeats}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                benchmark.round(Path(folder))
    except FlowdiffError as error:
        print(error, file=sys.stderr)
        return 1
    conditions = (
        f"{time.strftime('%Y-%m-%d')}, {given.repeats} rounds, median (min–max) of them; {given.seconds:g} seconds of "
        f"training in each, seed {given.seed}, {machine_words([machine])}. × default: the value over the default's in "
        f"the same round; {SAMPLES} samples, seeds {given.seed} to {given.seed + SAMPLES - 1}, EMA weights. More "
        "images/s are faster, fewer seconds are."
    )
    who = "\n".join(f"* {line}" for line in benchmark.facts.values())
    name = f"guide_{given.dataset}"
    report(benchmark.rows(), given.out, name, f"{given.dataset}: speed beside the default", [conditions, who])
    return 0


if __name__ == "__main__":
    sys.exit(main())
