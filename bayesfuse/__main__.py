"""`python -m bayesfuse` is the command `bayesfuse`."""

import sys

from bayesfuse.cli import main

if __name__ == "__main__":
    sys.exit(main())
