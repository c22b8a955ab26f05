"""What the command `dessilbi` begins with: Ctrl-C is one line also while its parts are loaded."""

import sys


def main() -> int:
    """Runs the command; see `dessilbi_jax.cli`."""
    try:
        from dessilbi_jax.cli import main as run
    except KeyboardInterrupt:
        print("dessilbi: interrupted", file=sys.stderr)
        return 130
    return run()
