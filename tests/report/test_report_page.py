"""The page: its parts, its numbers, and that it stands alone."""

import base64
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

import dessilbi_jax as dl
from dessilbi_jax import report

VOID = {"meta", "img", "source", "br", "link", "input", "hr"}
SECTIONS = ["figures", "path", "curves", "layers", "entry", "settings", "again"]


class Page(HTMLParser):
    """Reads a page: tags with attributes, text by section, tables; checks that tags nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.tables, self.pairs = [], {}, {}, {}
        self._open, self._section = [], "header"
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = dict(attributes)["id"]
        if tag == "tr":
            self.tables.setdefault(self._section, []).append([])
        if tag in ("td", "th"):
            self.tables[self._section][-1].append("")
        if tag in ("dt", "dd"):
            self.pairs.setdefault(self._section, []).append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag == "section":
            self._section = "footer"

    def handle_data(self, data):
        if self._open and self._open[-1] == "style":
            return
        self.text[self._section] = self.text.get(self._section, "") + data
        if self._open and self._open[-1] in ("td", "th"):
            self.tables[self._section][-1][-1] += data
        if {"dt", "dd"} & set(self._open):
            self.pairs[self._section][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def settings(self, section):
        values = self.pairs[section]
        return dict(zip(values[::2], values[1::2], strict=True))


def read(folder):
    return Page(report.render(folder))


@pytest.fixture(scope="module")
def text(drawn_once):
    return drawn_once


@pytest.fixture
def page(text):
    return Page(text)


def figure(fraction):
    return f"{100 * fraction:.2f}\N{NO-BREAK SPACE}%"


def test_the_page_has_its_parts_in_order_and_links_to_them(page):
    assert [s["id"] for s in page.all("section")] == SECTIONS
    assert [a["href"] for a in page.all("a")] == [f"#{key}" for key in SECTIONS]
    assert "lenet-small" in page.text["header"]
    assert "finished" in page.text["header"]
    assert "not finished" not in page.text["header"]


def test_each_picture_has_a_caption_and_words_for_those_who_cannot_see_it(page, finished_run):
    pictures = page.all("img")
    assert len(pictures) == 5 == len(page.all("figure")) == len(page.all("figcaption"))
    assert len({p["alt"] for p in pictures}) == 5
    # On a phone each is drawn anew, narrow.
    narrow = page.all("source")
    assert len(narrow) == 5
    assert all(source["media"] == "screen and (max-width: 40rem)" for source in narrow)
    assert not {source["srcset"] for source in narrow} & {p["src"] for p in pictures}
    records = [json.loads(s) for s in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert figure(records[-1]["projected_accuracy"]) in pictures[1]["alt"]
    assert "conv1/kernel" in pictures[3]["alt"]


def test_the_page_stands_alone(page, text):
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        assert attributes.get("href", "#").startswith("#")
        assert attributes.get("src", "data:").startswith("data:")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "//" not in re.sub(r'src="data:[^"]*"', "", text)


def test_the_pictures_are_whole_and_reach_for_nothing(page):
    for picture in page.all("img"):
        kind, content = picture["src"].split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        root = ElementTree.fromstring(base64.b64decode(content))
        assert root.tag.endswith("}svg")
        for element in root.iter():
            assert not element.tag.endswith("}script")
            for name, value in element.attrib.items():
                assert not name.endswith("href") or value.startswith(("#", "data:"))


def test_the_headline_figures_are_those_of_the_result(page, finished_run):
    result = json.loads((finished_run / "result.json").read_text())
    shown = page.settings("figures")
    path = dl.SolutionPath.load(finished_run / "path.npz")
    support = path.support(80)
    kept = sum(int(mask.sum()) for mask in support.values())  # dense leaves are all True
    assert shown["Dense accuracy"].startswith("96.79\N{NO-BREAK SPACE}%")
    assert shown["Projected accuracy"].startswith("93.46\N{NO-BREAK SPACE}%")
    assert "−3.33 points" in shown["Projected accuracy"]
    assert shown["Density reached"].startswith(figure(result["density"]))
    assert "30.00\N{NO-BREAK SPACE}% was asked" in shown["Density reached"]
    assert f"{result['density'] / 0.3:.2f} times" in shown["Density reached"]
    assert shown["Parameters kept"].startswith(f"{kept}of {result['parameters']}: ")
    assert 0 < kept < result["parameters"] == 900


def test_the_layer_table_is_that_of_the_result(page, finished_run):
    result = json.loads((finished_run / "result.json").read_text())
    head, *rows, total = page.tables["layers"]
    assert head == ["layer", "shape", "groups", "selected", "weights", "kept", "density"]
    kept = 0
    for row, layer in zip(rows, result["layers"], strict=True):
        weights = math.prod(layer["shape"])
        kept += round(weights * layer["density"])
        assert row == [
            layer["name"],
            " × ".join(map(str, layer["shape"])),
            str(layer["groups"]),
            str(layer["selected_groups"]),
            str(weights),
            str(round(weights * layer["density"])),
            figure(layer["density"]),
        ]
    assert total[-2:] == [str(kept), figure(result["density"])]


def test_the_settings_and_every_estimate_of_lambda_are_shown(page, finished_run):
    shown = page.settings("settings")
    assert shown["nu"] == "300.0"
    assert shown["lam"] == "auto"
    assert shown["lean"] == "no"
    assert shown["widths"] == "[6, 40]"
    assert list(shown) == list(json.loads((finished_run / "config.json").read_text())["config"])
    assert page.tables["settings"] == [["step", "λ"], ["20", "0.01235"], ["40", "0.0211"]]
    assert "estimated inside the run" in page.text["settings"]


def test_it_says_how_to_run_it_again_and_on_what_it_ran(page):
    assert "dessilbi train lenet-small --density 0.3 --out runs/small" in page.text["again"]
    facts = page.settings("again")
    assert facts["took"] == "1 min 15 s"
    assert facts["steps"] == "80"
    assert facts["jax"] == "0.9.1"
    assert facts["cpu"] == "A Processor"
    assert facts["started"] == "2026-01-05T10:11:12+00:00"


def test_a_given_lambda_is_called_given_and_no_density_was_asked(make_run):
    folder = make_run()
    config = json.loads((folder / "config.json").read_text())
    config["config"] |= {"lam": 0.8, "density": None}
    (folder / "config.json").write_text(json.dumps(config))
    result = json.loads((folder / "result.json").read_text())
    result |= {"lam": [[0, 0.8]], "asked_density": None}
    (folder / "result.json").write_text(json.dumps(result))
    page = read(folder)
    assert "λ as it was given" in page.text["settings"]
    assert page.tables["settings"][1:] == [["0", "0.8"]]
    assert "none was asked" in page.settings("figures")["Density reached"]


def test_the_density_asked_of_the_result_comes_before_that_of_the_settings(make_run):
    folder = make_run()
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"asked_density": 0.4321}))
    assert "43.21" in read(folder).settings("figures")["Density reached"]


def test_all_text_is_escaped(make_run):
    hostile = "<script>alert('1')</script>&\"x\""
    folder = make_run(leaves={"a<b>&\"'$\\bad$_": (4, 5)})
    config = json.loads((folder / "config.json").read_text())
    config |= {"preset": hostile, "command": hostile, "started": hostile}
    config["config"] = {hostile: hostile}
    config["machine"] = {hostile: [hostile]}
    config["versions"] = {"jax": hostile}
    (folder / "config.json").write_text(json.dumps(config))
    text = report.render(folder)
    page = Page(text)
    assert "<script" not in text
    assert page.all("script") == page.all("b") == []
    assert hostile in page.text["header"]
    assert hostile in page.text["again"]
    assert page.settings("settings") == {hostile: hostile}
    assert page.tables["layers"][1][0] == "a<b>&\"'$\\bad$_/kernel"


@pytest.mark.drawn
def test_names_that_a_font_or_a_legend_may_choke_on_are_drawn(make_run):
    folder = make_run(leaves={"_hidden": (4, 5), "层": (4, 5)})
    page = read(folder)
    assert [row[0] for row in page.tables["layers"][1:3]] == ["_hidden/kernel", "层/kernel"]
    assert len(page.all("img")) == 5
