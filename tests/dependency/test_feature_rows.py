"""The table of docs/channels.md, line by line."""

from pathlib import Path

import pytest
from feature_rows import APPROXIMATE, EXACT, REFUSED, ROWS

import dessilbi_jax as dl
from dessilbi_jax.frameworks import is_module

PAGE = Path(__file__).parents[2] / "docs" / "channels.md"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.framework}: {row.feature}")
def test_as_many_channels_can_go_as_the_table_says(row):
    net, params, inputs = row.make()
    given = inputs if is_module(net) else (params, *inputs)
    groups = dl.channel_groups(net, *given, approximate=row.kind == APPROXIMATE)
    assert groups.count == row.removable, str(groups)
    assert (row.removable == row.of) == (row.kind != REFUSED)
    assert (row.kind == EXACT) == (not groups.approximate and row.why == "")
    if row.why:
        assert any(row.why in str(why) for why in groups.reasons.values())


def test_the_page_has_these_lines_and_no_others():
    told = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    lines = [line for line in told if line.split(" | ")[2].replace(" of ", "").isdigit()]
    assert lines == [str(row) for row in ROWS]
