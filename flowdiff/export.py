"""A model for other programs.   python -m flowdiff.export ckpt_path=RUN/checkpoints/last.ckpt output_dir=FOLDER"""

from flowdiff.commands.export import main

if __name__ == "__main__":
    main()
