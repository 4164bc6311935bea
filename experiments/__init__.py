"""Studies and benchmarks: what the package is for, run and recorded."""
