"""Training from the command line.   python -m flowdiff.train flow.n_flows=5 activation=elu"""

from flowdiff.commands.train import main

if __name__ == "__main__":
    main()
