"""``python -m r2f`` and the entry point of ``r2f``: Ctrl-C while modules are still being imported ends it quietly, too."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from r2f.cli import app
        from services import logs

        logs.configure(as_json=False, level="warning")  # what is asked for is on stdout, alone
        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
