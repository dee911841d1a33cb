"""Start the server that lies beside this file, without slipstream: `python serve.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from server.main import main  # type: ignore[import-not-found]

if __name__ == "__main__":
    main()
