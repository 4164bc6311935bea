"""What the program prints to be typed again gives the same value back, through the shell, Hydra and OmegaConf."""

import random
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from flowdiff.runs.words import assignment, command, override

NASTY = [
    *("/a b/x=y,z/checkpoints/last.ckpt", "it's", "[x]", "(a)", "{b}", 'a"b', "a\\", "\\'", '\\"', "a\\\\", "''", '""'),
    *(
        "$HOME",
        "${x}",
        "\\${x}",
        "${oc.env:HOME}",
        "~/x",
        "a:b",
        "1",
        "1e3",
        "true",
        "null",
        "",
        " lead",
        "trail ",
        "a\tb",
    ),
    *(
        "é ü",
        "a#b",
        "a;b",
        "a&b",
        "`ls`",
        "a|b",
        "*?",
        "-x",
        "+x",
        "!",
        "glob(a)",
        "range(3)",
        "choice(a,b)",
        "a\nb",
        "a\tb",
    ),
]
rng = random.Random(0)
NASTY += ["".join(rng.choice("ab \\'\"${}[](),=:/.~#") for _ in range(rng.randint(1, 12))) for _ in range(300)]


def read(word: str) -> object:
    parsed = OverridesParser.create().parse_override(word)
    assert parsed.key_or_group == "ckpt_path" and not parsed.is_sweep_override()
    return OmegaConf.create({"value": parsed.value()}).value


@pytest.mark.parametrize("values", [NASTY[:40], NASTY[40:]], ids=["paths", "random"])
def test_a_pasted_word_gives_the_value_back(values: list[str]) -> None:
    for value in values:
        (word,) = shlex.split(override("ckpt_path", value))
        assert word == assignment("ckpt_path", value)
        assert read(word) == value, (value, word)


def test_what_needs_no_quotes_has_none() -> None:
    shown = command("train", override("ckpt_path", "outputs/digits/2026-01-31/12-00-00.000001-0/checkpoints/last.ckpt"))
    assert "'" not in shown and '"' not in shown
    assert override("ckpt_path", "/a b/x=y,z/last.ckpt") == "'ckpt_path=\"/a b/x=y,z/last.ckpt\"'"
