"""The first stage: encoding and decoding in the autoencoder's own units, and what is refused."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowdiff.data.first_stage import AutoencoderKL
from flowdiff.errors import ConfigError
from tests.helpers.autoencoders import network, saved


def images(n: int = 5, channels: int = 1, size: int = 8) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    "units", [{"scaling_factor": 0.13025}, {"scaling_factor": 1.5, "shift_factor": 0.3}], ids=["sdxl", "shifted"]
)
def test_latents_are_in_the_units_of_the_autoencoders_configuration(tmp_path: Path, units: dict[str, float]) -> None:
    first_stage = AutoencoderKL(str(saved(tmp_path, **units)), device="cpu")
    x = images()
    with torch.no_grad():
        posterior = network().encode(x).latent_dist
        mean, std = first_stage.encode(x).unbind(1)
        scale, shift = units["scaling_factor"], units.get("shift_factor", 0.0)
        torch.testing.assert_close(mean, (posterior.mean - shift) * scale)
        torch.testing.assert_close(std, posterior.std * scale)
        torch.testing.assert_close(first_stage.decode(mean), network().decode(posterior.mean).sample)


def test_units_may_differ_by_channel(tmp_path: Path) -> None:
    """diffusers' pipelines decode z·std/scaling_factor + mean."""
    own = {"latents_mean": (0.5, -1.0), "latents_std": (2.0, 0.5), "scaling_factor": 0.7}
    first_stage = AutoencoderKL(str(saved(tmp_path, **own)), device="cpu")
    z = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    std, mean = (torch.tensor(own[key]).view(1, 2, 1, 1) for key in ("latents_std", "latents_mean"))
    with torch.no_grad():
        expected = network().decode(z * std / 0.7 + mean).sample
    torch.testing.assert_close(first_stage.decode(z), expected)
    found = first_stage.encode(first_stage.decode(z))[:, 0]
    with torch.no_grad():
        again = (network().encode(expected).latent_dist.mean - mean) / std * 0.7
    torch.testing.assert_close(found, again)


def test_slices_change_nothing(tmp_path: Path) -> None:
    folder = str(saved(tmp_path))
    whole, sliced = AutoencoderKL(folder, device="cpu"), AutoencoderKL(folder, slice=2, device="cpu")
    x = images(5)
    torch.testing.assert_close(whole.encode(x), sliced.encode(x))
    torch.testing.assert_close(whole.decode(x[:, :, ::2, ::2].expand(-1, 2, -1, -1)).shape, x.shape)


def test_the_autoencoder_of_a_pipeline_is_found(tmp_path: Path) -> None:
    saved(tmp_path / "vae")
    assert AutoencoderKL(str(tmp_path), device="cpu").latent_shape((1, 8, 8)) == (2, 4, 4)


def test_the_fingerprint_is_that_of_weights_and_units(tmp_path: Path) -> None:
    first, same = saved(tmp_path / "a"), saved(tmp_path / "elsewhere")
    others = [saved(tmp_path / "seed", seed=1), saved(tmp_path / "units", scaling_factor=0.5)]
    prints = [AutoencoderKL(str(folder), device="cpu").fingerprint for folder in (first, same, *others)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_what_is_no_autoencoder_is_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = saved(tmp_path / "broken")
    weights = broken / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    pickled = tmp_path / "pickled"
    network().save_pretrained(pickled, safe_serialization=False)
    for path, words in (
        (None, "RUN/autoencoder"),
        (tmp_path / "nothing", "there is no such folder"),
        (empty, "no autoencoder of diffusers lies there"),
        (broken, "not an autoencoder that can be read"),
        (pickled, "not an autoencoder that can be read"),  # a pickle could run code
    ):
        with pytest.raises(ConfigError, match=r"first_stage\.path=") as caught:
            AutoencoderKL(None if path is None else str(path))
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_images_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    first_stage = AutoencoderKL(str(saved(tmp_path)), device="cpu")
    with pytest.raises(ConfigError, match="images with 1 channel"):
        first_stage.latent_shape((3, 8, 8))
    with pytest.raises(ConfigError, match="divides height and width by 2"):
        first_stage.latent_shape((1, 7, 8))


def test_bytes_are_decoded_few_at_a_time(tmp_path: Path) -> None:
    """10,000 images of 1024×1024 would be 126 GB as floats: a slice is bytes before the next one is decoded."""
    first_stage = AutoencoderKL(str(saved(tmp_path)), slice=2, device="cpu")
    z = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert [len(part) for part in first_stage.decoded(z)] == [2, 2, 1]
    alive: list[weakref.ref[Tensor]] = []
    decode = first_stage.network.decode

    def watched(z: Tensor) -> Any:
        gc.collect()
        assert sum(image() is not None for image in alive) <= 1
        out = decode(z)
        alive.append(weakref.ref(out.sample))
        return out

    first_stage.network.decode = watched
    assert first_stage.to_uint8(z, 17).shape == (5, 1, 8, 8) and len(alive) == 3
