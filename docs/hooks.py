"""What the site takes from elsewhere in the repository, so that nothing is written down twice.

The home page is README.md; the benchmarks, CONTRIBUTING.md and CHANGELOG.md are pages; and the
options of the command are those that its parser prints. `mkdocs.yml` names this file.
"""

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
TAKEN = (
    "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "benchmarks/README.md",
    "benchmarks/figures/*.svg", "notebooks/*.ipynb",
)  # fmt: skip
_HELP = re.compile(r"^<!-- help: (.+?) -->$", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Adds the files that lie outside docs/, at the same places; README.md becomes the home."""
    home = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=as_home(home)))
    for pattern in TAKEN:
        for file in sorted(ROOT.glob(pattern)):
            place = file.relative_to(ROOT).as_posix()
            files.append(File.generated(config, place, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the help of a command where a page asks for it, as in `<!-- help: dessilbi slim -->`."""
    return _HELP.sub(lambda found: f"```text\n{command_help(found[1])}```", markdown)


def as_home(readme: str) -> str:
    """README.md with its links as they are seen from docs/.

    >>> as_home("[why](docs/concepts.md), ![a picture](docs/front.svg), [terms](LICENSE)")
    '[why](concepts.md), ![a picture](front.svg), [terms](LICENSE)'
    """
    return readme.replace("](docs/", "](")


def command_help(command: str) -> str:
    """What `COMMAND --help` prints, 88 columns wide.

    >>> command_help("dessilbi report").splitlines()[0]
    'usage: dessilbi report [-h] [--debug] [--figures DIR] [--overwrite] RUN'
    """
    from dessilbi_jax import cli

    out, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "88"
    try:
        with contextlib.redirect_stdout(out):
            cli.main([*command.split()[1:], "--help"])
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return out.getvalue()
