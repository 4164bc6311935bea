"""The page of one run: everything in one file, whatever the folder holds."""

import json
from pathlib import Path

import pytest

from flowdiff.commands.report import main
from tests.helpers.command_lines import BARE, Compose
from tests.helpers.runs import train


@pytest.fixture
def run(config: Compose, tmp_path: Path) -> Path:
    words = (*BARE, "logger=csv", "trainer.max_steps=4", "trainer.val_check_interval=2")
    train(config(*words, run_dir=tmp_path / "run"))
    return tmp_path / "run"


def page(run: Path, *words: str) -> str:
    assert main([str(run), *words]) == 0
    return (run / "report" / "index.html").read_text()


@pytest.mark.slow
def test_a_run_is_shown_with_its_pictures(run: Path) -> None:
    entry = {"value": 1.25, "standard_error": 0.5, "n": 360, "split": "test", "better": "lower", "nfe": 64.0}
    (run / "metrics.json").write_text(json.dumps({"bits_per_dim": entry}))
    (run / "status.json").write_text(json.dumps({"status": "done", "seconds": 12.0, "overrides": ["lr=1e-3"]}))
    found = page(run, "--samples", "10")
    for words in ("<td>bits_per_dim</td><td>1.25</td><td>0.5</td><td>lower</td><td>360</td>", "<td>64</td>"):
        assert words in found
    assert "<p>done, 12 seconds</p>" in found and "python -m flowdiff.train lr=1e-3\n" in found
    assert f"ckpt_path={run}/checkpoints/best.ckpt" in found and "\n  max_steps: 4\n" in found
    assert found.count('<img alt="') == found.count("data:image/png;base64,") == 3, "curves, samples, denoised images"
    assert 'src="http' not in found and "<script" not in found and "<link" not in found


@pytest.mark.slow
def test_a_page_says_what_it_can(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (run / "checkpoints").iterdir():
        file.write_bytes(b"no checkpoint")
    (run / "csv" / "metrics.csv").unlink()
    (run / "metrics.json").write_text('{"<b>x": {"value": null}, "y": 3, "fd": {"value": 1e999, "better": []}}')
    (run / "status.json").write_text('{"status": "<script>", "overrides": [1, {"a": 2}, "</pre>"]}')
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to("/etc/passwd")
    found = page(run)
    assert "<img" not in found and "<script" not in found and found.count("</pre>") == found.count("<pre>") == 2
    assert "config.yaml: a link out of the run folder, not followed" in found and "&lt;b&gt;x" in found
    assert "not finite" in found and "no samples of" in capsys.readouterr().out


def test_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"{tmp_path}: no run's folder; give one that holds status.json or metrics.json\n"
    assert not (tmp_path / "report").exists()
    (tmp_path / "status.json").write_text("{}")
    (tmp_path / "report").symlink_to(tmp_path)
    assert main([str(tmp_path)]) == 1 and "a link, which is not followed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])
