"""The section on the ticket and the slim network."""

import json
import re

import numpy as np
import pytest
from test_report_page import Page, read

import dessilbi_jax as dl
from dessilbi_jax import report
from dessilbi_jax.report.run import read_run
from dessilbi_jax.report.slimming import read_made, ticket

NETWORK = {
    "parameters": 900,
    "flops": 5000,
    "bytes": 3600,
    "test_accuracy": 0.96789,
    "latency": {
        "1": {"median": 2.5e-5, "low": 2e-5, "high": 4e-5},
        "128": {"median": 3.1e-3, "low": 3e-3, "high": 3.2e-3},
    },
}
SMALL = {
    "parameters": 300,
    "flops": 1000,
    "bytes": 1200,
    "test_accuracy": 0.9611,
    "latency": {
        "1": {"median": 1.5e-5, "low": 1e-5, "high": 2e-5},
        "128": {"median": 9.1e-4, "low": 9e-4, "high": 9.2e-4},
    },
}
SLIM = {
    "kind": "slim",
    "ticket": {"digest": "abc"},
    "difference": 1.25e-7,
    "compared": 144,
    "channels": [4, 10],
    "params_from": "retrained",
    "round_to": 1,
    "networks": {"dense": NETWORK, "masked": {**NETWORK, "test_accuracy": 0.9611}, "slim": SMALL},
}
RETRAINED = {
    "kind": "retrained",
    "ticket": {"digest": "abc"},
    "from": "2",
    "steps": 40,
    "held_out": {"dense": 0.97, "projected": 0.81, "retrained": 0.965},
    "test": {"dense": 0.96789, "projected": 0.8, "retrained": 0.9611},
}


def add(folder, *, slim=SLIM, retrained=RETRAINED):
    masks = {
        "conv1/kernel": np.arange(54).reshape(3, 3, 1, 6) % 2 == 0,
        "fc1/bias": np.ones(40, bool),
    }
    card = {"digest": "abc", "groups": [3, 6], "accuracy": {"held-out": {"projected": 0.8123}}}
    dl.Ticket(masks, 60, ("conv1/kernel",), 0.5, "3 elements fewer", card).save(
        folder / "ticket.npz"
    )
    for name, result in (("slim", slim), ("retrained", retrained)):
        if result is not None:
            (folder / name).mkdir()
            (folder / name / "result.json").write_text(json.dumps(result))


def section(folder):
    return Page(ticket(read_run(folder)).html())


def test_a_run_without_a_ticket_has_no_such_section(make_run):
    assert ticket(read_run(make_run())) is None


def test_dense_masked_and_slim_stand_side_by_side(make_run):
    folder = make_run()
    add(folder)
    page = read(folder)
    layers, table = page.tables["ticket"][:2], page.tables["ticket"][2:]
    assert layers == [
        ["layer", "kept", "of", "share"],
        ["conv1/kernel", "27", "54", "50.00\N{NO-BREAK SPACE}%"],
    ]
    assert table == [
        ["", "dense", "masked", "slim"],
        ["parameters", "900", "900", "300"],
        ["FLOPs, one image", "5,000", "5,000", "1,000"],
        ["bytes", "3,600", "3,600", "1,200"],
        ["latency, batch 1", "25 µs (20–40)", "25 µs (20–40)", "15 µs (10–20)"],
        ["latency, batch 128", "3.1 ms (3–3.2)", "3.1 ms (3–3.2)", "910 µs (900–920)"],
        ["test accuracy", *(f"{x}\N{NO-BREAK SPACE}%" for x in ("96.79", "96.11", "96.11"))],
    ]
    text = page.text["ticket"].replace("\N{NO-BREAK SPACE}", " ")
    assert "in 3 of 6 groups" in text
    assert "81.23 % of the held-out data" in text
    assert "3 elements fewer" in text
    assert "40 steps from the weights of epoch 2" in text
    assert "96.11 % of the test data; the dense network on 96.79 % (−0.68 points)" in text
    assert "6 of 10 channels are gone" in text
    assert "33.3 % of the parameters and 20.0 % of the operations" in text
    assert page.settings("ticket") == {
        "largest output difference, slim against masked": "1.2e-07 of the largest output",
        "compared on": "144 held-out rows, all classes",
    }


def test_the_section_says_what_is_missing(make_run):
    folder = make_run(finished=False)
    add(folder, slim=None, retrained=None)
    text = section(folder).text["ticket"]
    assert "It has not been cut out yet" in text
    assert "Retrained" not in text


def test_what_came_from_another_ticket_is_not_shown(make_run):
    folder = make_run()
    add(folder, slim={**SLIM, "ticket": {"digest": "other"}})
    text = section(folder).text["ticket"]
    assert "The network in slim was made from another ticket" in text
    assert "910 µs" not in text
    assert "Retrained for 40 steps" in text


def without(result, *names):
    result = json.loads(json.dumps(result))
    inner = result
    for name in names[:-1]:
        inner = inner[name]
    del inner[names[-1]]
    return result


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slim": without(SLIM, "difference")}, "slim/result.json: the field 'difference'"),
        (
            {"slim": without(SLIM, "networks", "masked")},
            "slim/result.json: masked: expected a JSON",
        ),
        ({"slim": without(SLIM, "networks", "slim", "latency", "1")}, "same batch sizes"),
        ({"slim": {**SLIM, "channels": [1]}}, "'channels' should be [kept, in all], got [1]"),
        ({"slim": {**SLIM, "ticket": {}}}, "slim/result.json: ticket: the field 'digest'"),
        ({"retrained": without(RETRAINED, "test")}, "retrained/result.json: the field 'test'"),
        ({"retrained": {**RETRAINED, "held_out": {}}}, "held_out: the field 'retrained'"),
    ],
)
def test_a_malformed_file_is_named(changes, message, make_run):
    folder = make_run()
    add(folder, **changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_made(folder)


def test_groups_that_span_leaves_are_counted_once(make_run):
    folder = make_run()
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**result, "groups": [7, 11]}))
    assert read(folder).tables["layers"][-1][2:4] == ["11", "7"]
    (folder / "result.json").write_text(json.dumps({**result, "groups": [7]}))
    with pytest.raises(ValueError, match=r"'groups' should be \[selected, in all\]"):
        report.render(folder)
