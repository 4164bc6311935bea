"""The readers of files, given bytes and entries that nobody wrote: an answer, or an error of one line."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowdiff import files
from flowdiff.commands import stored_words
from flowdiff.commands.export import export
from flowdiff.errors import FlowdiffError
from flowdiff.model import checkpoint as checkpoints
from flowdiff.model import reading, safe_construction
from flowdiff.model.facts import check_content
from tests.helpers.configs import composed
from tests.helpers.trained import checkpoint

FEW = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)


@given(st.text(max_size=200) | st.from_regex(r"[+~]{0,2}[a-z_.]{1,20}=[$\\{}\[\]a-z:'\" _]{0,40}", fullmatch=True))
@FEW
def test_any_word_is_read_or_refused_in_a_line(word: str) -> None:
    try:
        (override,) = stored_words.read([word])
    except FlowdiffError as error:
        assert str(error).isprintable()
    else:
        assert "$" not in str(override.value()) and not override.is_sweep_override()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export(composed("export", f"ckpt_path={checkpoint('digits')}", f"output_dir={folder}"))
    return folder


@st.composite
def spoiled(draw: st.DrawFn, size: int) -> list[tuple[int, bytes]]:
    """Some places in a file of `size` bytes and what is written there."""
    return draw(
        st.lists(st.tuples(st.integers(0, size - 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4)
    )


def with_bytes(whole: bytes, places: list[tuple[int, bytes]]) -> bytes:
    data = bytearray(whole)
    for at, new in places:
        data[at : at + len(new)] = new
    return bytes(data)


@pytest.mark.parametrize("where", ["anywhere", "contents", "end"])
def test_a_checkpoint_with_other_bytes(where: str, tmp_path: Path) -> None:
    whole = checkpoint("digits").read_bytes()
    original = checkpoints.load(checkpoint("digits"))[0].state_dict()
    low, high = {"anywhere": (0, len(whole)), "contents": (0, 30_000), "end": (len(whole) - 20_000, len(whole))}[where]

    @given(spoiled(high - low))
    @FEW
    def tried(places: list[tuple[int, bytes]]) -> None:
        file = tmp_path / "x.ckpt"
        file.write_bytes(with_bytes(whole, [(low + at, new) for at, new in places])[: len(whole)])
        try:
            found = checkpoints.load(file)[0].state_dict()
        except FlowdiffError as error:
            assert str(error).isprintable()
        else:  # what was written there means nothing
            assert all(torch.equal(found[name], tensor) for name, tensor in original.items())

    tried()


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_an_exported_model_with_other_bytes(name: str, plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "m")
    whole = (plain / name).read_bytes()
    original = checkpoints.load(plain)[0].state_dict()

    @given(spoiled(len(whole)))
    @FEW
    def tried(places: list[tuple[int, bytes]]) -> None:
        (tmp_path / "m" / name).write_bytes(with_bytes(whole, places)[: len(whole)])
        try:
            found = checkpoints.load(tmp_path / "m")[0].state_dict()
        except FlowdiffError as error:
            assert str(error).isprintable()
        else:
            assert all(torch.equal(found[key], tensor) for key, tensor in original.items())

    tried()


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4),
    max_leaves=12,
)


@given(st.data())
@FEW
def test_entries_that_nobody_wrote(data: st.DataObject) -> None:
    content = torch.load(checkpoint("digits"), weights_only=True)
    entry = content["flowdiff"]
    node = data.draw(st.sampled_from([entry, entry["config"], entry["config"]["denoiser"], content]))
    node[data.draw(st.sampled_from(sorted(node)))] = data.draw(ANY)
    try:
        check_content(content, 10**6)
        safe_construction.build("denoiser", content["flowdiff"]["config"]["denoiser"], shape=[1, 8, 8], num_classes=10)
    except FlowdiffError as error:
        assert str(error).isprintable()


@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
@FEW
def test_json_and_yaml_that_nobody_wrote(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any"
    file.write_bytes(content)
    for read in (files.read_json, files.read_yaml, reading.read_safetensors, reading.read_checkpoint):
        try:
            read(file)
        except FlowdiffError as error:
            assert str(error).isprintable()
