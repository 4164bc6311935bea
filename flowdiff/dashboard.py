"""TensorBoard on the last sweep.   python -m flowdiff.dashboard [FOLDER] [-- --port 6007 …]"""

from flowdiff.commands.dashboard import main

if __name__ == "__main__":
    main()
