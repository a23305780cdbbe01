"""``python -m primus.runtime.environments NAME``: what the bootstrap calls when there is nothing yet."""

from __future__ import annotations

import sys
from typing import NoReturn

from primus.errors import PrimusError
from primus.runtime.environments import create


def main() -> NoReturn:
    try:
        create(sys.argv[1])
    except PrimusError as error:
        sys.stderr.write(f"primus-cli: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("\nprimus-cli: interrupted; the next call starts over\n")
        sys.exit(130)
    sys.exit(0)


if __name__ == "__main__":
    main()
