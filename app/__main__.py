"""`python -m app COMMAND`."""

import sys

from app.operate.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
