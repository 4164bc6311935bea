"""Files as a stranger might hand them in, made by a script: checkpoints, exported models, data. None of them may do
anything but be refused in a line, or be read for what is good in them.

`checkpoints(good, folder)` and `exported(good, folder)` make them from good ones. What a payload would do if it ran
is to write `MARK` into the folder of the process.
"""

import copy
import json
import os
import pickle
import shutil
import socket
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

MARK = "MARK"
SHELL = f"touch {MARK}"
Content = dict[str, Any]


class Runs:
    """Writes `MARK` when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (SHELL,)


class Huge:
    """A tensor that says it has more numbers than its memory holds."""

    def __reduce__(self) -> tuple[Any, ...]:
        storage = torch.zeros(4).storage()
        return torch._utils._rebuild_tensor_v2, (storage, 0, (10**8,), (1,), False, OrderedDict())


def escaped(text: str) -> str:
    """An interpolation as Hydra's grammar takes it without quotes."""
    return "".join(f"\\{c}" if c in "{}:,= ()[]" else c for c in text)


COLLECT = f"{{_target_:torch.utils.collect_env.run,command:{SHELL}}}"
#: a, b, d, e: words of a stored command line.
WORDS = (
    f"+callbacks.x={escaped('${oc.decode:' + COLLECT + '}')}",
    f"+callbacks.x='${{oc.decode:\"{COLLECT}\"}}'",
    f"callbacks.progress={escaped('${oc.decode:' + COLLECT + '}')}",
    "run_dir='${oc.env:HOME}'",
    "name='${run_of:x}'",
    r"name='\${oc.env:HOME}'",
    "+callbacks.x={_target_: os.system, command: touch MARK}",
    "+callbacks.x={y: [{_target_: torch.utils.collect_env.run, command: touch MARK}]}",
    "callbacks.progress._target_=os.system",
    "++flow.activation={_target_: torch.load, f: payload.pkl}",
    "+callbacks.x={_args_: [1]}",
    "callbacks.scalars.buckets.0._target_=os.system",
    "hydra.searchpath=[file://.]",
    "+hydra.searchpath=[file://.]",
    "hydra/launcher=joblib",
    "hydra.run.dir=elsewhere",
    "+Hydra.x=1",
    "dataset=../evil",
    "dataset=../../../../tmp/evil",
    "+evil=payload",
    "dataset@flow=digits",
    "flow@_global_=linear",
    "flow.n_flows=1,2",
    "flow.n_flows=range(1,9)",
    "lr=choice(1,2)",
    "name=glob(*)",
    "+__class__.x=1",
    "+callbacks.__init__=1",
    "ﬂow.width=16",
    "lr=\x1b[31m0.1",
    "lr=0.1\nlr=0.2",
    "x=" + "[" * 900 + "]" * 900,
    "x=" + "a" * 4090,
    "callbacks.checkpoints.folder=OUTSIDE",
    "logger.csv.save_dir=OUTSIDE",
    "logger.csv.version=../../OUTSIDE",
    "logger.tensorboard.save_dir=OUTSIDE",
    "trainer.default_root_dir=OUTSIDE",
    "trainer.profiler=pytorch",
    "+trainer.plugins=[x]",
    "+trainer.logger=true",
    "trainer=ddp",
    "trainer.strategy=ddp_spawn",
    "trainer.devices=2",
    "logger=wandb",
    "metrics=[fid,kid]",
    "first_stage=autoencoder_kl",
    "denoiser=sdxl",
    "denoiser=unet_diffusers_pretrained",
    "experiment=sdxl_latent",
    "~trainer.strategy",
    "flow.n_flows=1000",
    "flow.n_flows=10000000",
    "flow.width=65536",
    "dataset=toy",
    "~trainer",
    "~lr",
    "lr=abc",
    "trainer.max_steps=abc",
    "flow=null",
    "callbacks.progress=5",
    "+callbacks.x=abc",
    "no such word",
    "=",
)
SDXL = {"_target_": "flowdiff.denoisers.SDXL", "path": "someone/something"}
HUB = {"_target_": "flowdiff.data.AutoencoderKL", "path": "someone/something", "cache": "OUTSIDE"}


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def laughs() -> list[Any]:
    found: list[Any] = ["ha"]
    for _ in range(40):
        found = [found] * 10
    return found


def itself() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def _set(*path: str | int, value: Any) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        node: Any = content
        for name in path[:-1]:
            node = node[name]
        node[path[-1]] = value

    return change


def _config(*path: str, value: Any) -> Callable[[Content], None]:
    return _set("flowdiff", "config", *path, value=value)


def _weights(change: Callable[[torch.Tensor], Any]) -> Callable[[Content], None]:
    """Of the first matrix of the averaged weights."""

    def changed(content: Content) -> None:
        state = content["state_dict"]
        name = next(name for name, tensor in state.items() if tensor.dim() == 2 and tensor.is_floating_point())
        state[name] = change(state[name])

    return changed


def _filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[0, 0] = value
        return tensor

    return change


def changes() -> Iterator[tuple[str, Callable[[Content], Any]]]:
    """What is done to a good checkpoint, by name."""
    for i, word in enumerate(WORDS):
        yield f"word{i}", lambda content, word=word: content["flowdiff"]["overrides"].append(word)
    yield "words", lambda content: content["flowdiff"]["overrides"].extend(["lr=0.001"] * 5000)
    for name, target in {
        "command": "os.system",
        "collect": "torch.utils.collect_env.run",
        "function": "flowdiff.files.write_text",
        "trains": "experiments.extractors.__main__.main",
        "module": "flowdiff.model.checkpoint.subprocess.run",
        "look": "flowdiff.activаtions.ELU",
        "wandb": "flowdiff.training.wandb_logger",
        "logger": "flowdiff.training.CSVLogger",
        "trainer": "lightning.pytorch.Trainer",
        "hub": "flowdiff.data.AutoencoderKL",
    }.items():
        node = {"_target_": target, "command": SHELL, "save_dir": "OUTSIDE", "path": "someone/something"}
        yield f"flow_{name}", _config("denoiser", "flow", value=node)
        if name in ("command", "logger", "hub"):
            yield f"sampler_{name}", _config("sampler", value=node)
            yield f"dataset_{name}", _config("dataset", value=node)
            yield f"metrics_{name}", _config("metrics", value={"evil": node})
    activation = ("denoiser", "flow", "activation")
    yield "target_list", _config(*activation, value={"_target_": ["os.system"]})
    yield "target_in_list", _config("denoiser", "flow", "width", value=[{"_target_": "os.system", "command": SHELL}])
    yield "args", _config(*activation, "_args_", value=[SHELL])
    yield "convert", _config(*activation, "_convert_", value="object")
    yield "recursive", _config(*activation, "_recursive_", value=False)
    yield "partial", _config(*activation, "_partial_", value="yes")
    yield "missing", _config("denoiser", "flow", "width", value="???")
    yield "resolver", _config("denoiser", "flow", "width", value="${oc.decode:" + COLLECT + "}")
    yield "env", _config("sampler", "eta", value="${oc.env:HOME}")
    yield "hydra", _config("hydra", value={"searchpath": ["file://."]})
    yield "sdxl", _config("denoiser", value=SDXL)
    yield "unet_pretrained", _config("denoiser", value=SDXL | {"_target_": "flowdiff.denoisers.PretrainedUNet2D"})
    fid = {"_target_": "flowdiff.metrics.FID", "num_samples": 8, "batch_size": 4}
    yield (
        "fid_pickle",
        _config("metrics", value={"fid": fid | {"weights_path": "payload.pth", "cache_root": "OUTSIDE"}}),
    )
    yield "fid_download", _config("metrics", value={"fid": fid, "kid": fid | {"_target_": "flowdiff.metrics.KID"}})
    mnist = {"_target_": "flowdiff.data.MNIST", "root": "OUTSIDE", "download": True, "batch_size": 8, "seed": 0}
    yield "download", _config("dataset", value=mnist)
    yield "cifar", _config("dataset", value={"_target_": "flowdiff.data.CIFAR10", "root": "cifar", "download": False})
    yield "images", _config("dataset", value={"_target_": "flowdiff.data.ImageFolder", "root": "/etc"})

    def latents(content: Content) -> None:
        content["flowdiff"]["config"]["first_stage"] = HUB
        content["flowdiff"]["first_stage"] = {"sha256": "0" * 64, "levels": 17}
        content["flowdiff"]["levels"] = None

    yield "hub", latents
    for key, values in {
        "config": ([], None, "text", {}, {"denoiser": None}, nested(100), laughs(), itself()),
        "overrides": ("lr=1", [1], [None], {"a": 1}),
        "shape": ([], [0], [1, 8], [10**9], [65_536] * 4, "188", [1, 8.0, 8], [True, 8, 8], [3, 64, 64]),
        "num_classes": (-1, 2.5, "10", 10**9, None, True),
        "levels": (0, 1, -17, 257, "17", 17.0, True),
        "class_names": ("abc", [1], ["a"] * 3, ["\x1b[2J"] * 10),
        "data": (None, 5, "a\nb", "\x1b]0;x\x07", "x" * 10_000),
        "first_stage": ([], {"sha256": 5}, {"sha256": "x", "levels": 17}),
        "versions": ([], {"torch": nested(100)}),
        "git": ([], "\x1b[0m"),
        "format": ("1", 99, None, 1.5, True),
        "micro_step": ("abc", None, -1),
        "source": ([], {"lr": "${oc.env:HOME}"}, {"flow": {"_target_": "os.system"}}),
    }.items():
        for i, value in enumerate(values):
            yield f"{key}{i}", _set("flowdiff", key, value=value)
    for key, values in {
        "global_step": ("abc", -1, 10**30, None, 1.5, nested(3)),
        "state_dict": ([], None, {}, {0: torch.zeros(2)}, {"denoiser.x": "text"}, {"denoiser.x": torch.zeros(2)}),
        "optimizer_states": ([], "abc", [{"state": {0: {"exp_avg": "x"}}, "param_groups": [{}]}], {"a": 1}),
        "lr_schedulers": ("abc", [], [{"last_epoch": "x", "__class__": 1}], [{"step": "x"}], [{"last_epoch": "x"}]),
        "loops": ([], {"fit_loop": {"state_dict": 5}}, "abc", {"fit_loop": {"state_dict": {"x": "abc"}}}),
        "callbacks": ([], {"Checkpoints": "x"}, {"Checkpoints": {"best": "x"}}, {"\x1b[2J": {}}),
        "averaging_state": ("abc", {"n_averaged": "x"}),
        "current_model_state": ([], {1: 2}),
        "pytorch-lightning_version": ("0.1", "abc", None, 5),
        "flowdiff": ([], None, "abc"),
        "more": (Runs(), Huge(), {1, 2}, b"bytes" * 10, 1j),
    }.items():
        for i, value in enumerate(values):
            yield f"{key}_{i}", _set(key, value=value)
    yield "nan", _weights(_filled(float("nan")))
    yield "inf", _weights(_filled(float("inf")))
    yield "expanded", _weights(lambda t: torch.zeros(1).expand(10**5, 10**5))
    yield "strided", _weights(lambda t: torch.zeros(1).as_strided((10**5, 10**5), (0, 0)))
    yield "sparse", _weights(lambda t: t.to_sparse())
    yield "quantised", _weights(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8))
    yield "moments", _set("optimizer_states", 0, "state", 0, "exp_avg", value=torch.zeros(3))
    yield "moment_text", _set("optimizer_states", 0, "state", 0, "step", value="abc")
    yield "betas", _set("optimizer_states", 0, "param_groups", 0, "betas", value="abc")
    yield "rate", _set("optimizer_states", 0, "param_groups", 0, "initial_lr", value="abc")
    position = [{"epoch": 10**15, "step": 10**15}]
    yield "position", _set("loops", "fit_loop", "state_dict", "combined_loader", value=position)
    yield "meta", _weights(lambda t: t.to("meta"))
    yield "complex", _weights(lambda t: t.to(torch.complex64))
    yield "shapes", _weights(lambda t: t[:-1])
    yield "dtype", _weights(lambda t: t.to(torch.int64))
    yield "many", _config("denoiser", "flow", "n_flows", value=10**7)
    yield "thousand", _config("denoiser", "flow", "n_flows", value=1000)

    def whole(content: Content) -> None:
        entry = content["flowdiff"]
        entry["overrides"].append(f"flow.n_flows={10**7}")
        for flow in (entry["source"]["flow"], entry["config"]["flow"], entry["config"]["denoiser"]["flow"]):
            flow["n_flows"] = 10**7

    yield "many_of_all", whole
    yield "wide", _config("denoiser", "flow", "width", value=65_536)
    yield "deep", _config("denoiser", "flow", "depth", value=1000)
    yield "negative", _config("denoiser", "flow", "width", value=-5)
    yield "embedding", _config("denoiser", "conditioning", "sigma_embed_dim", value=60_000)
    yield "foreign_argument", _config("denoiser", "flow", "evil", value=1)
    yield "no_sampler", _config("sampler", value=None)
    yield "metrics_list", _config("metrics", value=[1])
    yield "stage_text", _config("first_stage", value="abc")
    yield "steps_text", _config("num_steps", value="abc")


def checkpoints(good: Path, folder: Path) -> list[Path]:
    """Hostile checkpoints in a folder; what they name lies beside them."""
    (folder / "payload.pth").write_bytes(pickle.dumps(Runs()))
    torch.save({"a": Runs()}, folder / "payload.pkl")
    (folder / "evil.yaml").write_text(f"_target_: os.system\ncommand: {SHELL}\n")
    (folder / "dataset").mkdir()
    shutil.copy(folder / "evil.yaml", folder / "dataset" / "evil.yaml")
    (folder / "cifar" / "cifar-10-batches-py").mkdir(parents=True)
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / "cifar" / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(Runs()))
    content, found = torch.load(good, weights_only=True), []
    for name, change in changes():
        path = folder / f"{name}.ckpt"
        own = copy.deepcopy(content)
        change(own)
        torch.save(own, path)
        found.append(path)
    return [*found, *_files(good, folder)]


def _inside_records(good: Path) -> list[int]:
    """The middles of the three largest tensors in a checkpoint: not of the padding before them, which says nothing."""
    with zipfile.ZipFile(good) as archive:
        tensors = [info for info in archive.infolist() if "/data/" in info.filename]
    largest = sorted(tensors, key=lambda info: info.file_size)[-3:]
    data = good.read_bytes()
    heads = [(info.header_offset, info.file_size) for info in largest]
    return [at + 30 + sum(struct.unpack("<HH", data[at + 26 : at + 30])) + size // 2 for at, size in heads]


def _files(good: Path, folder: Path) -> Iterator[Path]:
    """Files that are no zip of torch's, or lie about what is in them."""
    data = good.read_bytes()

    def written(name: str, content: bytes) -> Path:
        path = folder / f"{name}.ckpt"
        path.write_bytes(content)
        return path

    for i, middle in enumerate(_inside_records(good)):
        yield written(f"flipped{i}", data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :])
    yield written("cut", data[: len(data) // 2])
    yield written("empty", b"")
    yield written("text", b"not a checkpoint")
    yield written("pickle", pickle.dumps(Runs()))
    yield written("begins", b"PK\x03\x04")
    yield written("comment", data[:-2] + struct.pack("<H", 5) + b"12345")
    yield written("counts", data[:-14] + struct.pack("<H", 0xFFFF) + data[-12:])
    yield written("gzip", b"\x1f\x8b\x08" + b"\x00" * 100)
    torch.save({"flowdiff": Runs()}, folder / "legacy.ckpt", _use_new_zipfile_serialization=False)
    yield folder / "legacy.ckpt"

    def rezipped(
        name: str, change: Callable[[zipfile.ZipInfo, bytes], Any], more: dict[str, bytes] | None = None
    ) -> Path:
        path = folder / f"{name}.ckpt"
        with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w") as new:
            for record in old.infolist():
                content, info = old.read(record), zipfile.ZipInfo(record.filename)
                content = change(info, content) or content
                new.writestr(info, content)
            for key, value in (more or {}).items():
                new.writestr(f"archive/{key}", value, zipfile.ZIP_DEFLATED if name == "bomb" else zipfile.ZIP_STORED)
        return path

    def deflated(info: zipfile.ZipInfo, content: bytes) -> None:
        info.compress_type = zipfile.ZIP_DEFLATED

    yield rezipped("deflated", deflated)
    yield rezipped("bomb", lambda info, content: None, {"data/9999": bytes(200 << 20)})
    yield rezipped("script", lambda info, content: None, {"constants.pkl": pickle.dumps(Runs()), "code/x.py": b"1"})
    yield rezipped(
        "opcodes", lambda info, content: b"]0" * 900_000 + content if info.filename.endswith("data.pkl") else None
    )
    yield rezipped(
        "swapped", lambda info, content: pickle.dumps(Runs()) if info.filename.endswith("data.pkl") else None
    )
    path = folder / "records.ckpt"
    with zipfile.ZipFile(path, "w") as new:
        for i in range(50_100):
            new.writestr(f"archive/data/{i}", b"")
    yield path
    larger = bytearray(data)
    where = larger.rfind(b"PK\x01\x02")
    larger[where + 20 : where + 28] = struct.pack("<2L", 1 << 30, 1 << 30)
    yield written("larger", bytes(larger))
    os.mkfifo(folder / "fifo.ckpt")
    yield folder / "fifo.ckpt"
    (folder / "device.ckpt").symlink_to("/dev/zero")
    yield folder / "device.ckpt"
    (folder / "loop.ckpt").symlink_to("loop.ckpt")
    yield folder / "loop.ckpt"
    if len(str(folder)) < 80:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(str(folder / "socket.ckpt"))
        yield folder / "socket.ckpt"
    yield folder / ("a" * 5000)
    yield folder / "\x1b[31mnone.ckpt"
    yield Path("~nobody-of-that-name/last.ckpt")


def exported(good: Path, folder: Path) -> list[Path]:
    """Hostile folders of exported models, made from a good one."""
    entry, found = json.loads((good / "model.json").read_text()), []
    tensors = load_file(good / "model.safetensors")
    whole = (good / "model.safetensors").read_bytes()

    def case(name: str, facts: Any = None, content: bytes | None = None) -> Path:
        path = folder / f"exported_{name}"
        shutil.copytree(good, path)
        if facts is not None:
            text = facts if isinstance(facts, str) else json.dumps(facts)
            (path / "model.json").write_text(text)
        if content is not None:
            (path / "model.safetensors").write_bytes(content)
        found.append(path)
        return path

    def with_facts(**values: Any) -> dict[str, Any]:
        facts = copy.deepcopy(entry)
        facts.pop("sha256")
        facts.pop("signature", None)
        return facts | values

    case("step", with_facts(step=None))
    case("weights", with_facts(weights="best"))
    case("levels", with_facts(levels=0))
    case("config", with_facts(config=[]))
    case("command", with_facts(config=entry["config"] | {"denoiser": {"_target_": "os.system", "command": SHELL}}))
    case(
        "metrics", with_facts(config=entry["config"] | {"metrics": {"x": {"_target_": "os.system", "command": SHELL}}})
    )
    case("fid", with_facts(config=entry["config"] | {"metrics": {"fid": {
        "_target_": "flowdiff.metrics.FID", "weights_path": "payload.pth", "num_samples": 8}}}))  # fmt: skip
    case("edited", entry | {"data": "letters"})
    case("nested", '{"format": 1, "config": ' + "[" * 200_000 + "]" * 200_000 + "}")
    case("huge", '{"format": ' + "9" * 100_000 + "}")
    case("null", "null")
    case("bytes", "\x00\x01\x02")
    case("long", '{"format": 1, "x": "' + "a" * (9 << 20) + '"}')
    case("header", content=(2**62).to_bytes(8, "little") + whole[8:])
    case("short", content=whole[:40])
    middle = len(whole) * 7 // 10
    case("flipped", content=whole[:middle] + bytes([whole[middle] ^ 0x10]) + whole[middle + 1 :])
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.dim() == 2)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, case("nan", with_facts()) / "model.safetensors")
    path = case("fifo")
    (path / "model.json").unlink()
    os.mkfifo(path / "model.json")
    path = case("device")
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to("/dev/zero")
    return found
