"""A sweep's report.   python -m flowdiff.collect multirun/digits/2026-01-31/12-00-00.000000"""

import sys

from flowdiff.commands.collect import main

if __name__ == "__main__":
    sys.exit(main())
