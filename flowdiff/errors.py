"""A user's mistake is one line: the key, its value and what is allowed, printed without a traceback."""


class FlowdiffError(Exception):
    """Something the user can put right. The message is one line that says how."""


class ConfigError(FlowdiffError):
    """A configuration value that is not allowed.

    Args:
        key: the key as it is typed on the command line, e.g. ``flow.n_flows``.
        value: the value given.
        allowed: what would be accepted, in words.
    """

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key}={value}: {allowed}")
        self.key = key
