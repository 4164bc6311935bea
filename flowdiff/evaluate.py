"""Evaluation from the command line.   python -m flowdiff.evaluate ckpt_path=… metrics=[bits_per_dim,fd,denoising]"""

from flowdiff.commands.evaluate import main

if __name__ == "__main__":
    main()
