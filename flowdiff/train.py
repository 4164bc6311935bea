"""Training from the command line.   python -m flowdiff.train flow.n_flows=5 activation=elu

What needs torch is imported when a run begins, so that --help and tab completion answer at once.
"""

from typing import Any

from omegaconf import DictConfig, open_dict

from flowdiff import cli


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train one model and evaluate it: `flowdiff.training.train`."""
    from flowdiff import training

    return training.train(cfg)


def task(cfg: DictConfig) -> dict[str, Any]:
    """One job of the command line: a new run, or a run that goes on (`flowdiff.resume`)."""
    from flowdiff import resume, training

    path = resume.find_checkpoint(cfg)
    if path:
        with open_dict(cfg):
            cfg.ckpt_path = path
        words = training.given_overrides()
        cfg = resume.resumed(cfg, [w for w in words if w.split("=")[0] not in ("ckpt_path", "resume")])
    return training.train(cfg)


def main() -> None:
    """The command line."""
    cli.run(task, "config")


if __name__ == "__main__":
    main()
