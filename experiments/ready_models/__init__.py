"""The main job on digits, two moons and MNIST: commands, metrics.json of each run, and the README's table."""
