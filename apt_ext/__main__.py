"""`python -m apt_ext`: the command line of the embedded demo."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from apt_ext.demo.cli import main
    except ImportError as error:
        print(f"apt_ext: {error}; install what the demo needs first, see README.md", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(main())
