"""`python -m dessilbi_jax` is the command `dessilbi`."""

import sys

from dessilbi_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
