"""Files from strangers: every command refuses them in a line or reads what is good in them, quickly, in little memory,
and nothing else happens (`watched` looks on)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from flowdiff.commands.export import export
from tests.helpers import forked, hostile
from tests.helpers.command_lines import ROOT, environment
from tests.helpers.configs import composed
from tests.helpers.trained import checkpoint, edited

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("hostile")]

OPENING = ["load", "sample", "evaluate", "export"]
SECONDS, MEGABYTES = 5, 500
#: What a file holds that is only looked at by a run that goes on from it.
GOING_ON = (
    "word", "optimizer", "many_of", "lr_sched", "loops", "callbacks_", "averaging", "current", "pytorch", "source",
    "micro", "moment", "betas", "rate", "position", "dtype", "nan", "inf", "more", "flipped", "state_dict", "global",
    "config",
)  # fmt: skip


def commands(path: Path) -> list[str]:
    """Those that a file is given to: a stored word changes nothing of how a model is opened."""
    if path.name.startswith("exported_"):
        return OPENING
    if path.name.startswith("word"):
        return ["load", "train"] if path.name == "words.ckpt" else ["train"]
    if path.name.startswith(GOING_ON):
        return ["load", "train"]
    return [*OPENING, "train"] if path.name.startswith(("fid", "hub", "download", "shape", "fifo")) else OPENING


Report = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """What came of every file and command, by `"<command> <file>"`."""
    root = tmp_path_factory.mktemp("h")
    files, out, outside = root / "files", root / "out", root / "outside"
    for folder in (files, out, outside):
        folder.mkdir()
    bits = {"bits_per_dim": {"_target_": "flowdiff.metrics.BitsPerDim"}}
    good = edited(checkpoint("digits"), root / "good.ckpt", lambda c: c["flowdiff"]["config"].update(metrics=bits))
    export(composed("export", f"ckpt_path={good}", f"output_dir={root}/exported"))
    made = [*hostile.checkpoints(good, files), *hostile.exported(root / "exported", files)]
    assert len(made) > 250
    listed = {str(path): commands(path) for path in made} | {str(outside): ["control"]}
    (out / "files.json").write_text(json.dumps(listed))
    before = seen(files)
    env = environment() | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests", "FLOWDIFF_CACHE": str(root / "cache")}
    env.pop("FLOWDIFF_DATA", None)
    said = (root / "said", root / "said")
    done = forked.run("tests.helpers.watched", [str(good), str(files), str(out)], root, env, said, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:]
    assert seen(files) == before, "no file beside them was made or changed"
    assert not list(root.rglob(hostile.MARK))
    found: Report = json.loads((out / "report.json").read_text())
    return found


def seen(folder: Path) -> dict[str, tuple[int, int]]:
    """Every entry below a folder, with its size and time."""
    stats = {str(path): path.lstat() for path in folder.rglob("*")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def test_the_watch_sees_what_it_is_for(report: Report) -> None:
    control = next(entry for name, entry in report.items() if name.startswith("control"))
    noted = " ".join(control["noted"])
    for event in ("open ", "os.mkdir", "socket.", "os.system", "subprocess.", "pickle.find_class", "import this"):
        assert event in noted, event
    assert "ValueError: two" in control["trace"]


def test_a_line_or_an_answer_and_nothing_else(report: Report) -> None:
    for name, entry in report.items():
        if name.startswith("control"):
            continue
        line = entry["line"]
        assert entry["trace"] is None, (name, entry["trace"])
        assert not entry["noted"], (name, entry["noted"])
        assert line is None or (line.isprintable() and 10 < len(line) < 800), (name, line)
        assert entry["seconds"] < SECONDS, (name, entry["seconds"])
        assert entry["megabytes"] < MEGABYTES, (name, entry["megabytes"])


@pytest.mark.parametrize(
    ("which", "line"),
    [
        (r"train word(\d|1[0-8]|2\d|30|31)\.ckpt", r"its command line holds the word .*, which is not followed"),
        (r"load (flow|target)_\w+", r"its configuration names denoiser\.flow\..*only what conf/denoiser names"),
        (r"load (args|convert|recursive|partial|missing|resolver|hydra)\.", "not followed|interpolation|true or false"),
        (r"sample (sampler_\w+|env)\.", r"its configuration (names sampler\._target_|holds an interpolation)"),
        (r"evaluate (dataset|metrics)_(command|logger|hub)", r"its configuration names (dataset|metrics)\._target_"),
        (r"evaluate (fid_\w+|exported_fid)", "metrics=.*must name at least one"),
        (r"evaluate (download|cifar)", r"dataset\.root=data: no \w+ files"),
        (r"evaluate images", r"dataset\.root=/etc: is only what the checkpoint says.*give data_root="),
        (r"(sample|evaluate) hub", r"first_stage\.path=null: .*someone/something is only what the checkpoint"),
        (r"\w+ (shape[0134567]|levels|num_classes|data\d|format|git|versions)", "damaged or foreign|its format|nested"),
        (r"\w+ (config\d|metrics_list|stage_text|steps_text|no_sampler)", "damaged or foreign|nested too deep"),
        (r"\w+ (nan|inf|exported_nan)", r"\w+\.weight has values that are not finite"),
        (
            r"\w+ (expanded|strided|sparse|quantised|meta\.|complex)",
            "more numbers than its memory|plain tensor|complex64",
        ),
        (r"(load|train) many\.", "n_flows=10000000: must be a whole number from 1 to 1000"),
        (r"(load|train) (thousand|wide|embedding)", "describes a larger model than the file holds tensors for"),
        (r"\w+ (flipped|exported_flipped|exported_edited)", "damaged: "),
        (r"\w+ (deflated|bomb|larger|script|opcodes|records)", "compressed|larger than the file|TorchScript|more than"),
        (
            r"\w+ (cut|empty|text|pickle|legacy|swapped|begins|gzip|more_1)\.",
            "not a readable checkpoint; is it cut off",
        ),
        (r"\w+ more_0", "it holds Python objects, which are not run"),
        (r"\w+ (fifo|device|socket)\.", "not a regular file"),
        (r"\w+ exported_(step|weights|levels|config|command|nested|huge|null|long|header|short|fifo)", "ckpt_path="),
        (
            r"train (optimizer|lr_sched|loops|callbacks_[013]|averaging_state_0|pytorch|moment|rate)",
            "damaged|can't be gone on|the model is not",
        ),
    ],
)
def test_what_is_refused(which: str, line: str, report: Report) -> None:
    matching = {name: entry["line"] for name, entry in report.items() if re.match(which, name)}
    assert matching
    for name, said in matching.items():
        assert said is not None and re.search(line, said), (name, said)


def test_what_is_outside_of_the_run_is_left_out_and_the_run_goes_on(report: Report) -> None:
    begins = ("callbacks.check", "logger", "trainer.d", "trainer.p", "trainer.s", "trainer=", "+trainer")
    for i in [i for i, word in enumerate(hostile.WORDS) if word.startswith(begins)]:
        entry = report[f"train word{i}.ckpt"]
        assert entry["line"] is None
        assert f"{hostile.WORDS[i]}: is only what the checkpoint says and not followed" in entry["said"]
    fetching = report[f"train word{hostile.WORDS.index('metrics=[fid,kid]')}.ckpt"]
    assert fetching["line"] is None
