"""What a GPU computes is what the CPU computes, and the commands work there. Skipped where there is no GPU (as in CI).

In float64 the two differ by rounding alone; float32 and bfloat16 are looked at by what they do to bits/dim.
"""

import copy
import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from flowdiff.commands.evaluate import evaluate
from flowdiff.denoisers.base import Denoiser, Perturbation
from flowdiff.denoisers.score_flow import ScoreFlow
from flowdiff.samplers.noise import IndexedNoise
from flowdiff.samplers.schedules import Karras
from flowdiff.training.graphed import GraphedStep, mean_loss
from tests.helpers.command_lines import BARE, Command, Compose
from tests.helpers.configs import build, choices, composed
from tests.helpers.models import IMAGE, make, points, random_flow, randomise, statistics
from tests.helpers.runs import train
from tests.helpers.trained import checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def on_gpu(*tensors: Tensor | None) -> list[Tensor | None]:
    return [t if t is None else t.cuda() for t in tensors]


def loss_and_gradients(model: Denoiser, name: str, given: list[Tensor | None]) -> list[Tensor]:
    """On the CPU, wherever they were computed."""
    model.zero_grad()
    x, sigma, labels = given
    assert x is not None and sigma is not None
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)
    drop = torch.arange(len(x), device=x.device) % 2 == 0
    total = build("loss", name)(model, x, labels, sigma, eps, Perturbation(drop), 0.5)["loss"].mean()
    total.backward()
    return [total.detach().cpu(), *(p.grad.cpu().clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("loss", ["mixture", "likelihood"])
@pytest.mark.parametrize("flow", choices("flow"))
def test_losses_and_gradients_of_every_flow(flow: str, loss: str) -> None:
    if flow == "zuko":
        pytest.importorskip("zuko")
    model = copy.deepcopy(random_flow(flow))
    expected = loss_and_gradients(model, loss, list(points()))
    actual = loss_and_gradients(model.cuda(), loss, on_gpu(*points()))
    assert len(actual) == len(expected) > 1
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9 * float(b.abs().max()) + 1e-12)


CHOICES = [(group, name) for group in ("flow", "activation", "precondition", "conditioning") for name in choices(group)]


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_densities_scores_and_inverses_of_every_choice(group: str, name: str) -> None:
    if name == "zuko":
        pytest.importorskip("zuko")
    model = make(**{group: name}).double().eval()
    model.fit(statistics(num_classes=model.num_classes))
    randomise(model)
    assert isinstance(model, ScoreFlow)
    x, sigma, labels = points(num_classes=model.num_classes)
    expected = model.score_and_log_prob(x, sigma, labels)
    model.cuda()
    at = on_gpu(x, sigma, labels)
    for a, b in zip(model.score_and_log_prob(*at), expected, strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(a.cpu(), b, rtol=1e-7, atol=1e-8)
    if model.has_inverse:
        z = model.latent(*at)  # type: ignore[arg-type]
        torch.testing.assert_close(model.inverse(z, at[1], at[2]).cpu(), x, rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", choices("sampler"))
def test_the_samples_of_every_sampler_are_those_of_the_cpu(name: str) -> None:
    """The noise of a sample depends on its index alone."""
    model = copy.deepcopy(random_flow("coupling"))
    sampler = build("sampler", name, num_steps=4, sigma_start=0.3)
    sigmas, labels = sampler.sigmas(Karras(0.002, 80.0)), torch.arange(6) % 3
    found = []
    for device in ("cpu", "cuda"):
        model.to(device)
        noise = IndexedNoise(range(6), IMAGE, device, torch.float64)
        found.append(sampler(model, noise, sigmas, labels.to(device)).cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def trained(config: Compose, run: Path, *words: str) -> dict[str, float]:
    """The last validation of a short training."""
    return train(config(*BARE, "trainer.max_steps=20", "trainer.val_check_interval=20", *words, run_dir=run))[
        "validation"
    ]


@pytest.mark.parametrize("loss", ["mixture", "likelihood"])
def test_a_training_is_that_of_the_cpu(loss: str, config: Compose, tmp_path: Path) -> None:
    """Not bit by bit: each device draws other noise."""
    cpu = trained(config, tmp_path / "cpu", f"loss={loss}")
    gpu = trained(config, tmp_path / "gpu", f"loss={loss}", "trainer=gpu")
    assert gpu["val/bits_per_dim"] == pytest.approx(cpu["val/bits_per_dim"], abs=0.1)


@pytest.mark.parametrize("words", [["trainer.precision=bf16-mixed"], ["trainer.strategy=ddp"]])
def test_bf16_and_ddp(words: list[str], config: Compose, tmp_path: Path) -> None:
    plain = trained(config, tmp_path / "plain", "trainer=gpu")
    other = trained(config, tmp_path / "other", "trainer=gpu", *words)
    assert other["val/bits_per_dim"] == pytest.approx(plain["val/bits_per_dim"], abs=0.02)


def test_a_recorded_step_is_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    """trainer.cuda_graph: by other batches than the one that was recorded, with dropout of its own in each step."""
    model = copy.deepcopy(random_flow("coupling")).cuda()
    x, sigma, labels = on_gpu(*points())
    assert x is not None and sigma is not None
    loss, drop = build("loss", "mixture"), torch.arange(len(x), device="cuda") % 2 == 0
    half = torch.tensor(0.5, device="cuda")
    for dropout in (0.0, 0.3):
        step = GraphedStep(loss)
        for scale in (1.0, 0.5, 2.0):
            given = [x, labels, scale * sigma, torch.randn_like(x), Perturbation(drop, dropout=dropout), half]
            found = []
            for function in (step, functools.partial(mean_loss, loss)):
                model.zero_grad()
                torch.manual_seed(1)
                total, terms = function(model, *given)
                total.backward()
                found.append([total.detach(), *terms.values(), *(p.grad for p in model.parameters())])
            for a, b in zip(*found, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        assert step.replay is not None
    assert not capsys.readouterr().out


@pytest.mark.parametrize("loss", ["mixture", "likelihood"])
def test_a_training_by_recorded_steps(
    loss: str, config: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends where the training without it does."""
    ends = [
        trained(config, tmp_path / word, f"loss={loss}", "trainer=gpu", f"trainer.cuda_graph={word}")
        for word in ("null", "false")
    ]
    assert "trainer.cuda_graph" not in capsys.readouterr().out
    assert ends[0]["val/bits_per_dim"] == pytest.approx(ends[1]["val/bits_per_dim"], abs=1e-3)


def test_the_commands(command: Command, tmp_path: Path) -> None:
    """Train with compile=true, go on without, evaluate and sample; the CPU reads what the GPU wrote."""
    words = ["trainer=gpu", "trainer.val_check_interval=20", "flow.n_flows=1", "num_steps=4", "metrics=[bits_per_dim]"]
    done = command("train", *words, "trainer.max_steps=20", "compile=true", "run_dir=run", timeout=500)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    ckpt = "run/checkpoints/last.ckpt"
    again = command("train", f"ckpt_path={ckpt}", "compile=false", "trainer.max_steps=30", "run_dir=again")
    assert again.returncode == 0, again.stderr
    for device in ("cuda", "cpu"):
        drawn = command("sample", f"ckpt_path={ckpt}", "num_samples=16", f"device={device}", f"output_dir={device}")
        assert drawn.returncode == 0, drawn.stderr
    images = [np.load(tmp_path / device / "samples.npz")["images"].astype(float) for device in ("cuda", "cpu")]
    assert np.abs(images[0] - images[1]).mean() < 1, "of 255"
    assert math.isfinite(numbers["bits_per_dim"]["value"])


def test_metrics_are_those_of_the_cpu(tmp_path: Path) -> None:
    """All of conf/metrics that fit digits and need no weights from elsewhere, on few images."""
    names = [name for name in choices("metrics") if name not in ("fid", "kid", "isc", "prc", "toy", "cost")]
    few = ["denoising", "nll_by_sigma", "implied_bits", "ood_auroc", "class_posterior", "conservative", "fokker_planck"]
    words = [f"metrics.{name}.num_images=8" for name in few]
    words += [f"metrics.{name}.num_samples=32" for name in ("fd", "recognised")]
    found = {}
    for device in ("cpu", "cuda"):
        given = [f"ckpt_path={checkpoint('digits')}", f"metrics=[{','.join(names)}]", "num_steps=4", f"device={device}"]
        found[device] = evaluate(composed("evaluate", *given, *words, f"output_dir={tmp_path / device}"))["metrics"]
    assert found["cpu"].keys() == found["cuda"].keys() and len(found["cpu"]) > len(names)
    for name, entry in found["cpu"].items():
        assert found["cuda"][name]["value"] == pytest.approx(entry["value"], rel=2e-2, abs=2e-2), name
