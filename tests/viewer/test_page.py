"""The page is one file that loads nothing, and no text breaks out of it."""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
import torch
from matplotlib.colors import to_rgb

from captum_norm import attention_maps
from captum_norm.viewer import in_notebook, to_html
from captum_norm.viewer.page import embedded
from captum_norm.visualization import style
from tests.viewer.made import HOSTILE, attention, content_of, made_maps


@pytest.fixture(scope="module")
def hostile_page():
    maps = made_maps(attention(len(HOSTILE)), [HOSTILE])
    return to_html(maps, title="</title><script>window.injected=1</script>")


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def elements(page):
    parser = Elements()
    parser.feed(page)
    return parser.found


def test_text_in_the_data_makes_no_element(hostile_page):
    plain = to_html(made_maps(attention(3), [["a", "b", "c"]]), title="plain")
    assert [tag for tag, _ in elements(hostile_page)] == [tag for tag, _ in elements(plain)]


def test_data_come_back_as_they_were(hostile_page):
    [axis] = content_of(hostile_page)["axes"]
    assert axis["tokens"] == [token.replace("\ud800", "?") for token in HOSTILE]


def test_json_in_a_script_holds_no_character_of_markup():
    text = embedded({"<": "</script>&\u2028\u2029"})
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == {"<": "</script>&\u2028\u2029"}


def test_the_policy_names_the_one_script_and_the_one_style_and_forbids_the_rest(hostile_page):
    [policy] = [attrs["content"] for tag, attrs in elements(hostile_page) if "http-equiv" in attrs]

    def named(tag):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", hostile_page, re.DOTALL)[1]
        return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "script-src": f"'{named('script')}'",
        "style-src": f"'{named('style')}'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_nothing_is_loaded_from_anywhere(hostile_page):
    outside = {"src", "href", "action", "srcset", "data", "poster", "background"}
    assert not [(tag, attrs) for tag, attrs in elements(hostile_page) if outside & attrs.keys()]
    for name in ("viewer.css", "viewer.js", "viewer.html"):
        text = files("captum_norm.viewer").joinpath(name).read_text(encoding="utf-8")
        assert not re.findall(r"https?:|url\(|@import|\bimport\b\(|fetch\(|XMLHttpRequest|WebSocket", text)


def test_the_script_writes_text_never_markup():
    script = files("captum_norm.viewer").joinpath("viewer.js").read_text(encoding="utf-8")
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|</script|<!--", script)


def test_the_colours_are_those_of_the_figures():
    script = files("captum_norm.viewer").joinpath("viewer.js").read_text(encoding="utf-8")
    light = script[script.index("light: {") : script.index("dark: {")]
    for role, colours in style.ROLE_COLOURS.items():
        stops = re.findall(r"#\w{6}", re.search(rf"{role}: \[(.*?)\]", light)[1])
        drawn = [to_rgb(stop) for stop in stops]
        places = torch.linspace(0, 1, len(stops)).tolist()
        assert [colours(place)[:3] for place in places] == [pytest.approx(colour, abs=1 / 255) for colour in drawn]


def test_the_page_is_written_to_a_file_and_returned(tmp_path):
    file = tmp_path / "maps.html"
    page = to_html(made_maps(attention(3)), file)
    assert file.read_text(encoding="utf-8") == page
    assert page.startswith("<!doctype html>")
    with pytest.raises(FileNotFoundError, match="no/such"):
        to_html(made_maps(attention(3)), "no/such/folder.html")


def test_maps_show_themselves():
    encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
    maps = attention_maps(encoder, torch.randn(1, 3, 8), quantities=("weights", "head_norms", "summed_norms"))
    assert maps.to_html(title="Mine") == to_html(maps, title="Mine")
    frame = maps._repr_html_()
    [(tag, attrs)] = elements(frame)
    assert (tag, attrs["sandbox"]) == ("iframe", "allow-scripts")
    assert attrs["srcdoc"] == to_html(maps)


def test_maps_too_large_for_a_notebook_say_how_to_write_them():
    maps = made_maps({"summed_norms": [torch.zeros(1, 1800, 1800)]})
    assert "maps.to_html" in html.unescape(in_notebook(maps))
    assert len(in_notebook(maps)) < 500


def test_64_tokens_12_layers_and_12_heads_fit_into_a_few_hundred_kilobytes():
    maps = made_maps(attention(64, heads=12, calls=12), [[f"token{i}" for i in range(64)]])
    assert len(to_html(maps).encode()) < 800_000
