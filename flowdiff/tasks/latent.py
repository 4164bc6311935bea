r"""The latent space of the flow: what lies between two images, and one latent at every noise level.

    Interpolate   z_a = f(x_a; s), z_b = f(x_b; s);   x_t = f^{-1}(slerp(z_a, z_b, t); s), then Heun from s to 0
    Traverse      x_s = f^{-1}(z; s) and D(x_s; s) for one z, s from sigma_max down to sigma_min

    slerp(z_a, z_b, t) = ( sin((1-t) w) z_a + sin(t w) z_b ) / sin w,      cos w = z_a z_b / |z_a||z_b|

Standard normal latents are nearly on a sphere of radius sqrt(d): the arc stays there, the chord leaves it
(Shoemake 1985; White 2016, arXiv:1609.04468). At t = 0 and t = 1 the inverse gives x_a and x_b back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from flowdiff.data.labels import resolve_labels
from flowdiff.model.api import Model
from flowdiff.options import Range, Sigma, Steps, checked
from flowdiff.samplers.batched import Batch, BatchedSampler, Drawn, seeds_from
from flowdiff.samplers.inversion import InversionDenoise
from flowdiff.samplers.schedules import Geometric
from flowdiff.tasks.base import Request, Task, TaskResult, choose_images


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """The arc from a (n, ...) to b at t (n,) in [0, 1]; the chord where they are parallel. Exact at 0 and 1."""
    cosine = torch.nn.functional.cosine_similarity(a.flatten(1).double(), b.flatten(1).double())
    angle = cosine.clamp(-1, 1).acos()
    straight, sine, t = angle.sin() < 1e-4, angle.sin().clamp(min=1e-4), t.double()
    of_a = torch.where(straight, 1 - t, ((1 - t) * angle).sin() / sine).to(a)
    of_b = torch.where(straight, t, (t * angle).sin() / sine).to(b)
    each = (-1, *[1] * (a.dim() - 1))
    return of_a.view(each) * a + of_b.view(each) * b


class Interpolate(Task):
    """From one image of a pair to the other, through the latent. Without a class unless the request has one.

    Args:
        steps: images from x_a to x_b, both counted, >= 2.
        sigma_start: the noise level of the latent; None: the checkpoint's.
        denoise_steps: Heun steps from there to 0.
        split: train, val or test.
        index: the images, two for each row: a list, or the number of the first; None: the first ones.
    """

    @checked
    def __init__(
        self,
        steps: Annotated[int, Range(2, 1000)],
        denoise_steps: Steps,
        sigma_start: Sigma | None = None,
        split: Literal["train", "val", "test"] = "test",
        index: int | Sequence[int] | None = None,
    ) -> None:
        self.steps = steps
        self.denoise_steps = denoise_steps
        self.sigma_start = sigma_start
        self.split = split
        self.index = index

    def __call__(self, model: Model, batched: BatchedSampler, request: Request) -> TaskResult:
        self.need_images(model)
        self.need_inverse(model)
        sigma = model.config["sigma_start"] if self.sigma_start is None else self.sigma_start
        batched = replace(batched, sampler=InversionDenoise(sigma, self.denoise_steps))
        images = choose_images(request, model, self.split, self.index, self.rows, each=2)
        n = len(images.x) // 2
        t = torch.linspace(0, 1, self.steps).repeat(n)
        rows = torch.arange(n).repeat_interleave(self.steps)
        a, b = images.x[::2][rows], images.x[1::2][rows]
        labels = resolve_labels(request.class_label, n, model.num_classes, names=model.class_names)
        own = None if labels is None else labels[rows]
        seeds = seeds_from(request.seed, n * self.steps)
        drawn = _interpolate(batched, a, b, t, own, seeds)
        x, inverted = drawn.x, drawn.more["inverted"]
        path, blend = (drawn.more[key].view(n, -1).mean(0).tolist() for key in ("log_prob", "log_prob_blend"))
        start, end = t == 0, t == 1
        measured = {
            "split": self.split,
            "index": images.index.tolist(),
            "steps": self.steps,
            "end_error": float(torch.cat([(inverted - a)[start], (inverted - b)[end]]).abs().max()),
            "end_mse": float(torch.cat([(x - a)[start], (x - b)[end]]).square().mean()),
            "log_prob_path": path,
            "log_prob_blend": blend,
        }
        middle = self.steps // 2
        report = [
            f"ends: |f^-1(f(x)) - x| at most {measured['end_error']:.2g}; denoised, mse {measured['end_mse']:.2g}",
            f"log p at sigma {sigma:g}: {path[0]:.1f} nats at the first end, {path[middle]:.1f} in the "
            f"middle of the path, {blend[middle]:.1f} in the middle of the pixels' blend",
        ]
        shown = [images.x[::2, None], x.unflatten(0, (n, -1)), images.x[1::2, None]]
        return TaskResult(
            drawn=drawn,
            x=x,
            labels=own,
            seeds=seeds,
            picture=torch.cat(shown, 1).flatten(0, 1),
            columns=["original", *(f"t = {value:.2g}" for value in t[: self.steps].tolist()), "original"],
            measured=measured,
            report=report,
            arrays={"originals": model.to_uint8(images.x), "index": images.index, "inverted": inverted, "t": t},
        )


def _interpolate(
    batched: BatchedSampler, a: Tensor, b: Tensor, t: Tensor, labels: Tensor | None, seeds: Tensor
) -> Drawn:
    """The images at t (n,) between a and b (n, C, H, W): denoised, as inverted, and log p of these and of the blend."""

    def sample(batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        denoiser, classes = batch.denoiser, batch.labels
        one, other, at = (v[batch.rows].to(batch.device) for v in (a, b, t))
        sigma = one.new_full((len(one),), float(batch.sigmas[0]))
        z = slerp(denoiser.latent(one, sigma, classes), denoiser.latent(other, sigma, classes), at)
        x = denoiser.inverse(z, sigma, classes)
        blend = torch.lerp(one, other, at.view(-1, 1, 1, 1))
        log_prob, log_prob_blend = (denoiser.score_and_log_prob(v, sigma, classes)[1].float() for v in (x, blend))
        more = {"inverted": x.float(), "log_prob": log_prob, "log_prob_blend": log_prob_blend}
        return batch.sample(noise=lambda: z), more

    return batched.each(sample, labels, seeds, what="interpolating")


class Traverse(Task):
    """One latent a row, at noise levels from sigma_max down to sigma_min: x, and D(x) below it.

    x is shown as x / sqrt(1 + sigma^2), so that it stays in the range of a picture.

    Args:
        levels: how many, >= 2, equally far apart in log sigma.
    """

    rows = 4

    @checked
    def __init__(self, levels: Annotated[int, Range(2, 1000)]) -> None:
        self.levels = levels

    def __call__(self, model: Model, batched: BatchedSampler, request: Request) -> TaskResult:
        self.need_images(model)
        self.need_inverse(model)
        n = request.num_samples or self.rows
        wanted = "balanced" if request.class_label is None else request.class_label
        labels = resolve_labels(wanted, n, model.num_classes, names=model.class_names)
        seeds = seeds_from(request.seed, n)
        schedule = batched.schedule
        sigmas = Geometric(schedule.sigma_min, schedule.sigma_max)(self.levels)[:-1].tolist()

        def sample(batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
            z = batch.noise()
            found = []
            for level in sigmas:
                sigma = z.new_full((len(z),), level)
                x = batch.denoiser.inverse(z, sigma, batch.labels)
                found.append(torch.stack([x, batch.denoiser(x, sigma, batch.labels)], 1))
                batch.advance()
            return torch.stack(found, 1), {}

        drawn = batched.each(sample, labels, seeds, len(sigmas), what="traversing")
        x, denoised = drawn.x.unbind(2)
        scale = (1 + torch.tensor(sigmas).square()).rsqrt().view(-1, 1, 1, 1)
        change = (denoised[:, 1:] - denoised[:, :-1]).square().mean((0, 2, 3, 4)).sqrt()
        how = {"sampler": "inversion", "num_steps": self.levels, "sigma_start": None}
        largest = int(change.argmax())
        report = [
            f"D changes most from sigma {sigmas[largest]:.3g} to {sigmas[largest + 1]:.3g}: "
            f"by {float(change[largest]):.3g} rms a pixel"
        ]
        return TaskResult(
            drawn=drawn,
            x=denoised.flatten(0, 1),
            labels=None if labels is None else labels.repeat_interleave(self.levels),
            seeds=seeds.repeat_interleave(self.levels),
            picture=torch.stack([x * scale, denoised], 1).flatten(0, 2),
            columns=[f"sigma = {sigma:.3g}" for sigma in sigmas],
            measured=how | {"sigmas": sigmas, "change": change.tolist()},
            report=report,
            arrays={"x": x.flatten(0, 1), "sigmas": torch.tensor(sigmas).repeat(n)},
        )
