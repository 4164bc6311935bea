"""Sampling from the command line.   python -m flowdiff.sample ckpt_path=RUN/checkpoints/last.ckpt num_samples=16"""

from flowdiff.commands.sample import main

if __name__ == "__main__":
    main()
