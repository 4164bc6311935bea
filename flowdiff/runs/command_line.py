"""What a run knows of the command line that asked for it: plain values, read from Hydra by `commands`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class CommandLine:
    """The command line of a run; the default is that of a notebook: there is none.

    Attributes:
        words: as they were typed.
        source: the configuration before its interpolations were resolved; None: as it is resolved.
        choices: the file that was chosen of each group.
        swept: the keys that the run's sweep varies, with their values.
        config_dir: the folder of configurations that the user added.
        launcher: the class that starts the sweep's jobs; None: no sweep.
        as_single_run: within it, the process's own command line is that of this run alone, for its further processes.
    """

    words: Sequence[str] = ()
    source: Mapping[str, Any] | None = None
    choices: Mapping[str, str] = field(default_factory=dict)
    swept: Mapping[str, Sequence[str]] = field(default_factory=dict)
    config_dir: str | None = None
    launcher: str | None = None
    as_single_run: Callable[[str | None], AbstractContextManager[None]] = lambda ckpt_path: nullcontext()
