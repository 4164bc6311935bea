"""Every metric says what its numbers are: keys, unit, which way is better; what says nothing gets no verdict."""

import inspect
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from flowdiff import metrics
from flowdiff.data.digits import Digits
from flowdiff.data.toy import Toy
from flowdiff.metrics.base import Evaluand, Metric, Result, list_quantities, measure
from flowdiff.model import api
from flowdiff.quantities import Quantity, from_entries, resolve
from flowdiff.samplers.batched import Drawn
from tests.helpers.analytic import GaussianDenoiser
from tests.helpers.configs import choices, composed
from tests.helpers.trained import checkpoint

CHOICES = choices("metrics")


def chosen(name: str, **settings: Any) -> Metric:
    """The metric of conf/metrics/<name>.yaml, with these settings in place of its own."""
    (entry,) = composed(f"metrics/{name}").metrics.values()
    plain = {key: settings.get(key, value) for key, value in OmegaConf.to_container(entry).items()}
    return instantiate(plain, _convert_="all")


def evaluand(name: str) -> Evaluand:
    """A cheap model that the metric can be measured of."""
    if name == "toy":
        gaussian = GaussianDenoiser(torch.zeros(2), torch.eye(2), (2,))
        gaussian.num_classes = 0
        return Evaluand(gaussian, Toy(num_train=10, num_test=20))
    data = Digits()
    denoiser = api.load(checkpoint("digits")).denoiser
    return Evaluand(denoiser, data, data.statistics(10), lambda n, labels, seed: Drawn(torch.zeros(n, 1, 8, 8)))


@pytest.mark.parametrize("name", CHOICES)
def test_the_keys_that_a_metric_promises_are_those_it_reports(name: str) -> None:
    """And each of them has a direction or is none of a model's merits, in its entry as well."""
    cheap = {"num_samples": 20, "num_images": 20, "sigmas": [0.2, 3.0], "extractor": "small", "batch_size": 4}
    cheap |= {"repeats": 1, "num_probes": 2, "exact_dims": 0, "num_reference": 100}
    if name in ("fd", "recognised"):
        del cheap["extractor"]
    metric, model = chosen(name, **cheap), evaluand(name)
    promised, columns = metric.keys(model), metric.columns(model)
    results, skipped = measure({name: metric}, model)
    assert not skipped
    own = [key for key in results if not key.endswith("/real")]
    assert sorted(promised) == sorted(own), "keys"
    assert columns and set(columns) <= set(own), "columns that will be filled"
    entries = {key: result.to_json() for key, result in results.items()}
    for key, entry in entries.items():
        assert isinstance(entry["unit"], str)
        assert entry["better"] in ("higher", "lower") or key == "parameters", key
        assert entry.get("of_model", True) != (key.endswith("/real") or "filter" in key)
    assert any(entry.get("plotted") for entry in entries.values())
    before = from_entries({key: {"value": 1.0, "n": 1} for key in results}, list_quantities)
    now = from_entries(json.loads(json.dumps(entries)), list)
    assert {key: replace(quantity, column=None) for key, quantity in before.items()} == now, "files from before"


def test_every_metric_of_the_package_declares_its_numbers() -> None:
    kinds = [kind for kind in vars(metrics).values() if inspect.isclass(kind) and issubclass(kind, Metric)]
    assert len(kinds) > 12
    for kind in kinds:
        assert kind is Metric or kind.quantities, kind


def test_directions() -> None:
    """As they were decided on: a change of one is a change of every verdict."""
    higher = {"recognised", "class_posterior/*", "ood_auroc", "ood_auroc/*", "isc", "precision", "recall"}
    higher |= {"log_likelihood", "log_likelihood_gap"}
    known = {quantity.key: quantity.better for quantity in list_quantities() if quantity.key in names()}
    assert {key for key, better in known.items() if better == "higher"} == higher | {
        f"{key}_*" for key in ("isc", "precision", "recall")
    }
    assert {key for key, better in known.items() if better is None} == {"parameters"}
    with pytest.raises(ValueError, match="better=more of x: must be higher, lower or None"):
        Quantity("x", better="more")  # type: ignore[arg-type]


def names() -> set[str]:
    """The keys of the package's own metrics, without those of tests."""
    kinds = [kind for kind in vars(metrics).values() if inspect.isclass(kind) and issubclass(kind, Metric)]
    return {quantity.key for kind in kinds for quantity in kind.quantities}


def test_a_metric_that_says_nothing() -> None:
    class Silent(Metric):
        def __call__(self, model: Evaluand) -> dict[str, Result]:
            return {key: Result(1.0, 1) for key in ("silent/a", "silent/b", "other", "silent/a/real")}

    class Own(Metric):
        quantities = (Quantity("own_*", "m", "higher", plotted="own_two", column="own_three"),)

        def __call__(self, model: Evaluand) -> dict[str, Result]:
            return {key: Result(1.0, 1) for key in ("own_one", "own_two")}

        def keys(self, model: Evaluand) -> list[str]:
            return ["own_one", "own_two"]

    model = evaluand("toy")
    results, _ = measure({"s": Silent(), "o": Own()}, model)
    entries = {key: result.to_json() for key, result in results.items()}
    assert entries["silent/a"] == {"value": 1.0, "n": 1, "unit": None, "better": None, "plotted": True}
    assert entries["silent/b"] == {"value": 1.0, "n": 1, "unit": None, "better": None}
    assert entries["silent/a/real"]["of_model"] is False and entries["other"]["plotted"] is True
    assert entries["own_two"] == {"value": 1.0, "n": 1, "unit": "m", "better": "higher", "plotted": True}
    assert "plotted" not in entries["own_one"]
    assert Silent().columns(model) == [] and Own().columns(model) == ["own_one"], "the wanted one isn't measured"


def test_names_that_begin_alike_are_not_the_same() -> None:
    """bits_per_dim_of_mine and recognised_not are nobody's."""
    found = resolve(
        list_quantities(), ["bits_per_dim_x", "recognised_not", "xfd_a", "fid/x", "log_likelihood2", "fd_a/b"]
    )
    assert {quantity.better for quantity in found.values()} == {None}
    assert resolve(list_quantities(), ["fid_mlp_digits/real"])["fid_mlp_digits/real"].reference


@pytest.mark.parametrize("better", [1, True, "HIGHER", ["higher"], {"a": 1}, "", "more"])
def test_what_a_file_says_may_be_anything(better: Any) -> None:
    entry = {"value": 1, "better": better, "unit": better, "plotted": "yes", "of_model": 0}
    said = from_entries({"recognised": entry}, list_quantities)
    assert said["recognised"].better is None and not said["recognised"].plotted and not said["recognised"].reference
