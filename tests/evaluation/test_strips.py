"""Pictures: what is written above them."""

import torch

from flowdiff.evaluation import pictures


def test_a_denoising_strip_says_its_noise_levels() -> None:
    x0 = torch.zeros(2, 1, 8, 8)
    to_uint8 = lambda x: (128 + 20 * x).clamp(0, 255).to(torch.uint8)  # noqa: E731
    noise = torch.ones_like(x0)

    def strip(*sigmas: float) -> torch.Tensor:
        return pictures.denoising_strip(lambda x, sigma, labels: 0 * x, x0, None, sigmas, noise, to_uint8)

    one, other = strip(0.1, 3), strip(0.2, 3)
    grid = pictures.image_grid(to_uint8(torch.stack([0 * x0, 0.1 + x0, 0 * x0, 3 + x0, 0 * x0], 1).flatten(0, 1)), 5)
    high = one.shape[1] - grid.shape[1]
    assert high > 8 and torch.equal(one[:, high:], grid)
    heading, fifth = one[:, :high], one.shape[2] // 5
    assert [bool((part == 255).any()) for part in heading.split(fifth, 2)][:5] == [True] * 5
    differs = (heading != other[:, :high]).any(0).any(0).nonzero()
    assert fifth < differs.min() and differs.max() < 3 * fifth, "above the two images of that level alone"
