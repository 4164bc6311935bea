"""Every key of every command, set to what it can't be: one line that names it, or a run. Never a traceback."""
