"""`python -m app.broker --port P [--dir D] [--faults F]`."""

import argparse
import sys
from pathlib import Path

from app.broker.service import serve_forever
from app.errors import HeadraceError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app.broker", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one, and says which")
    parser.add_argument("--dir", type=Path, help="keep the log here; otherwise it is in memory")
    parser.add_argument("--faults", type=Path, help="a JSON file of faults on command, read whenever it is replaced")
    args = parser.parse_args()
    try:
        serve_forever(args.port, args.dir, args.faults)
    except HeadraceError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
