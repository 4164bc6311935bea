"""One run's page.   python -m flowdiff.report outputs/digits/2026-01-31/12-00-00.000000-0"""

import sys

from flowdiff.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
