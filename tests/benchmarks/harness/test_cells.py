"""Long tables in pieces."""

import json

import pytest

from benchmarks.harness import cells


def cell(name, made):
    def make():
        made.append(name)
        return {"value": name}

    return cells.Cell(name, make)


def test_a_row_is_made_once_and_found_again(tmp_path):
    made = []
    file = tmp_path / "rows.jsonl"
    for _ in range(2):
        rows = cells.run(cells.Runs(file), [cell("a", made), cell("b", made)])
        assert [row["value"] for row in rows] == ["a", "b"]
    assert made == ["a", "b"]
    assert {"seconds", "cpu_seconds", "machine"} <= rows[0].keys()


def test_two_processes_share_a_table(tmp_path, capsys):
    made = []
    file = tmp_path / "rows.jsonl"
    wanted = [cell(name, made) for name in "abcde"]
    assert cells.run(cells.Runs(file), wanted, (2, 2)) is None
    assert made == ["b", "d"]
    assert "3 of 5 cells are not there yet, such as 'a'" in capsys.readouterr().out
    rows = cells.run(cells.Runs(file), wanted, (1, 2))
    assert made == ["b", "d", "a", "c", "e"]
    assert [row["value"] for row in rows] == list("abcde")


def test_cells_that_use_the_same_runs_are_made_by_one_process(tmp_path):
    made = []
    wanted = [
        cells.Cell(name, cell(name, made).make, group=name[0]) for name in ("a1", "a2", "b1", "b2")
    ]
    cells.run(cells.Runs(tmp_path / "rows.jsonl"), wanted, (1, 2))
    assert made == ["a1", "a2"]


def test_when_and_where_rows_were_made():
    rows = [
        {"seconds": 1.2, "cpu_seconds": 1.0, "machine": {"cpu": name}} for name in ("x", "y", "x")
    ]
    assert cells.made_on(rows) == {
        "training_seconds": 4, "training_cpu_seconds": 3, "machines": [{"cpu": "x"}, {"cpu": "y"}],
    }  # fmt: skip


def test_a_row_made_by_another_process_meanwhile_is_taken(tmp_path):
    made = []
    file = tmp_path / "rows.jsonl"
    first, second = cells.Runs(file), cells.Runs(file)
    cells.run(second, [cell("b", made)])
    assert cells.run(first, [cell("a", made), cell("b", made)], (1, 2)) is not None


def test_a_line_cut_off_by_a_kill_is_made_anew(tmp_path):
    made = []
    file = tmp_path / "rows.jsonl"
    cells.run(cells.Runs(file), [cell("a", made), cell("b", made)])
    whole = file.read_text()
    file.write_text(whole[:-20])
    rows = cells.run(cells.Runs(file), [cell("a", made), cell("b", made)])
    assert made == ["a", "b", "b"]
    assert [row["value"] for row in rows] == ["a", "b"]
    kept = [line for line in file.read_text().splitlines() if line]
    assert json.loads(kept[-1])["key"] == "b"


def test_what_fails_leaves_what_was_earned(tmp_path):
    made = []
    file = tmp_path / "rows.jsonl"

    def fail():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cells.run(cells.Runs(file), [cell("a", made), cells.Cell("b", fail)])
    assert list(cells.Runs(file).rows) == ["a"]


def test_the_bar_says_how_much_is_left(tmp_path, capsys):
    made = []
    heavy = cells.Cell("heavy", lambda: {}, 3.0)
    cells.run(cells.Runs(tmp_path / "rows.jsonl"), [cell("a", made), heavy])
    lines = capsys.readouterr().err.splitlines()
    assert "  0 %, ? left  a" in lines[0]
    assert " 25 %" in lines[1]
    assert "heavy" in lines[1]
    assert "100 %, 0 s left  done" in lines[2]
