"""What a run folder holds and who works in it: status, lock, sweeps, signals."""
