"""The page in a real browser draws what is chosen, by pointer and keyboard, and runs nothing that came with a text."""


import pytest
import torch

from captum_norm.capture import Positions
from captum_norm.viewer import to_html
from tests.benchmarks.bench_viewer import moves
from tests.viewer.browser import Page, opened_browser
from tests.viewer.made import HOSTILE, attention, call, made_maps

WORDS = "[CLS] it is not a great film but a warm one [SEP]".split()


@pytest.fixture(scope="module")
def window():
    with opened_browser() as window:
        yield window


@pytest.fixture
def open_page(window, tmp_path):
    """From maps to an open page; no error may have been logged in the end."""
    opened = []

    def opener(maps, **choices):
        to_html(maps, tmp_path / "maps.html", **choices)
        window.get_log("browser")
        opened.append(Page(window, tmp_path / "maps.html"))
        return opened[-1]

    yield opener
    assert not [error for page in opened for error in page.errors()]


@pytest.fixture
def page(open_page):
    return open_page(made_maps(attention(len(WORDS), heads=3), [WORDS]))


def test_it_opens_without_an_error_and_says_what_it_holds(page):
    assert page.text("subtitle").startswith("2 attention calls, 1 example, 12 tokens")
    assert page.text("large-title") == "Layer 0, all 3 heads together"
    assert "read exactly: error 1.0e−7 (allowed 1.0e−5)" in page.text("large-note")
    assert "16 bits" in page.text("precision")
    assert page.count(".thumb") == 2 * (1 + 3)
    assert page.count(".map") == 2


def test_the_pixels_of_a_map_are_its_numbers(open_page):
    results = attention(6, heads=1, calls=1)
    page = open_page(made_maps(results, [list("abcdef")]))
    page.press("w")
    seen = page.run("""
        const {left, top, cell} = window.captumNorm.geometry(0), canvas = document.querySelector(".map canvas.base");
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height), seen = [];
        const ratio = canvas.width / canvas.clientWidth;
        for (let i = 0; i < 36; i++) {
          const x = left + ((i % 6) + 0.5) * cell, y = top + (Math.floor(i / 6) + 0.5) * cell;
          const start = 4 * (Math.floor(y * ratio) * canvas.width + Math.floor(x * ratio));
          seen.push([...data.slice(start, start + 3)]);
        }
        return seen;
    """)
    weights = results["weights"][0][0, 0].flatten()
    darkness = torch.tensor([-sum(pixel) for pixel in seen], dtype=torch.float)
    order = weights.argsort()
    assert (darkness[order].diff() >= 0).all()
    assert seen[int(order[-1])] == [3, 37, 76]  # the last colour of the ramp


def test_choosing_a_head_or_a_call_changes_the_drawing(page):
    before = page.drawn()
    page.click(".thumb[aria-label='Layer 1, head 2']")
    assert page.text("large-title") == "Layer 1, head 2"
    assert page.drawn() != before
    assert page.count(".thumb[aria-selected=true]") == 1


def test_each_measure_is_drawn(page):
    seen = set()
    for key, title in [("w", "Attention weight"), ("n", "Norm of the sum"), ("d", "Norm less weight")]:
        page.press(key)
        assert page.run("return document.querySelector('.panel h3').textContent").startswith(title)
        assert page.count(".panel") == 1
        seen.add(page.drawn())
    assert len(seen) == 3
    page.press("b")
    assert page.count(".panel") == 2


def test_the_pointer_shows_where_a_token_looks_and_who_takes_from_it(page):
    results = attention(len(WORDS), heads=3)
    page.point(3, 5)
    assert page.text("token-title") == "not → great"
    weight = float(results["weights"][0][0].mean(0)[3, 5])
    assert page.text("cell-note").startswith(f"α {weight:.3g}"[:5])
    order = results["summed_norms"][0][0, 3].argsort(descending=True)
    assert page.listed(0) == [WORDS[i] for i in order[:10]]
    takers = results["summed_norms"][0][0]
    takers = (takers / takers.sum(-1, keepdim=True))[:, 5].argsort(descending=True)
    assert page.listed(1) == [WORDS[i] for i in takers[:10]]


def test_a_click_holds_and_escape_lets_go(page):
    page.point(3, 5, "click")
    page.point(1, 1)
    assert page.text("token-title") == "not → great"
    assert "held" in page.text("token-note")
    page.press("Escape")
    page.point(1, 1)
    assert page.text("token-title") == "it → it"


def test_tokens_of_the_text_can_be_pointed_at(page):
    page.run("""
        const token = document.querySelector("#strip-keys-tokens [data-token='5']");
        token.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
    """)
    page.settle()
    assert page.text("token-title") == "great → great"


def test_arrows_move_call_and_head_in_the_glance(page):
    page.run("document.querySelector('.thumb[aria-selected=true]').focus()")
    page.press("ArrowDown", "ArrowRight", "ArrowRight")
    assert page.text("large-title") == "Layer 1, head 1"
    assert page.run("return document.activeElement.getAttribute('aria-label')") == "Layer 1, head 1"
    page.press("End")
    assert page.text("large-title") == "Layer 1, head 2"
    page.press("Home", "ArrowUp")
    assert page.text("large-title") == "Layer 0, all 3 heads together"


def test_arrows_move_row_and_column_in_a_map_and_the_screen_reader_is_told(page):
    page.run("document.querySelector('.map').focus()")
    page.press("ArrowDown", "ArrowRight", "ArrowRight")
    assert page.text("token-title") == "it → is"
    assert page.text("live").startswith("it to is: α")
    page.press("End", "PageDown")
    assert page.text("token-title") == "[SEP] → [SEP]"


def test_arrows_move_the_token_in_the_text(page):
    page.run("document.getElementById('strip-queries-tokens').focus()")
    page.press("ArrowRight", "ArrowRight")
    assert page.text("token-title") == "is → is"
    active = page.run("return document.getElementById('strip-queries-tokens').getAttribute('aria-activedescendant')")
    assert page.run("return document.getElementById(arguments[0]).textContent", active) == "is"


def test_single_letters_work_and_can_be_switched_off(page):
    page.press("]", ".")
    assert page.text("large-title") == "Layer 1, head 0"
    page.press("?")
    assert page.run("return document.getElementById('help').open")
    page.run("document.getElementById('letters').checked = false; document.getElementById('help').close()")
    page.press("[")
    assert page.text("large-title") == "Layer 1, head 0"


def test_all_controls_can_be_reached_and_have_a_name(page):
    nameless = page.run("""
        return [...document.querySelectorAll("button, select, input, [tabindex='0']")]
          .filter((e) => !(e.textContent.trim() || e.getAttribute("aria-label") || (e.labels && e.labels.length)))
          .map((e) => e.outerHTML);
    """)
    assert not nameless
    assert page.run("return [...document.querySelectorAll('.thumb')].filter((e) => e.tabIndex === 0).length") == 1


def test_the_focus_is_seen(page):
    page.window.switch_to.active_element.send_keys("\ue004")  # Tab
    assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_links_are_drawn_between_the_tokens_of_both_sides(page):
    cells = page.drawn()
    page.press("l")
    assert page.drawn() != cells
    assert page.count("#views [aria-pressed=true]") == 1
    before = page.drawn(".map canvas.over")
    page.run("""
        const canvas = document.querySelector(".map canvas.base"), box = canvas.getBoundingClientRect();
        const at = {clientX: box.left + 5, clientY: box.top + window.captumNorm.geometry(0).y(5)};
        canvas.dispatchEvent(new PointerEvent("pointermove", {...at, bubbles: true}));
    """)
    page.settle()
    assert page.text("token-title") == "great → great"
    assert page.drawn(".map canvas.over") != before
    page.click("#views [data-view=map]")
    assert page.drawn() == cells


def test_small_cells_are_magnified(open_page):
    page = open_page(made_maps(attention(260, heads=1, calls=1)))
    page.press("w")
    page.point(100, 20)
    pixel = page.run("""
        const {left, cell} = window.captumNorm.geometry(0), canvas = document.querySelector(".map canvas.over");
        const ratio = canvas.width / canvas.clientWidth, x = (left + 260 * cell - 8 - 2) * ratio;
        const y = (window.captumNorm.geometry(0).top + 100 * cell) * ratio;
        return canvas.getContext("2d").getImageData(x, y, 1, 1).data[3];
    """)
    assert pixel == 255


def test_a_threshold_empties_small_cells(page):
    page.press("n")
    before = page.drawn()
    page.run("const t = document.getElementById('threshold'); t.value = 20; t.dispatchEvent(new Event('input'))")
    page.settle()
    assert page.drawn() != before
    assert "below 20 %" in page.text("legend-note")


def test_a_token_set_aside_is_in_no_scale_and_no_share(page):
    page.press("w")
    page.point(0, 0, "click")
    first = page.run("return document.querySelector('.scale span:last-child').textContent")
    most = attention(len(WORDS), heads=3)["weights"][0][0].mean(0)
    column = int(most.max(0).values.argmax())
    page.point(0, column, "click")
    page.press("x")
    assert page.run("return document.querySelector('.scale span:last-child').textContent") != first
    assert WORDS[column] in page.text("legend-note")
    page.press("x")
    assert page.run("return document.querySelector('.scale span:last-child').textContent") == first


def test_light_and_dark_follow_the_system_and_the_switch(page):
    def paper():
        return page.run("return getComputedStyle(document.documentElement).backgroundColor")

    light, drawn = paper(), page.drawn()
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.window.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    try:
        page.settle()
        assert paper() != light
        assert page.drawn() != drawn
        page.click("#theme")
        assert (paper(), page.drawn()) == (light, drawn)
        page.press("t", "t")
        assert paper() != light
    finally:
        page.window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        page.run("localStorage.clear()")


def test_nothing_that_came_with_a_text_runs(open_page):
    maps = made_maps(attention(len(HOSTILE)), [HOSTILE])
    page = open_page(maps, title="</title><script>window.injected=1</script>", tokens=list(HOSTILE))
    for key in "wnbd":
        page.press(key)
    for row in range(len(HOSTILE)):
        page.point(row, row)
    assert page.run("return window.injected === undefined")
    assert page.count("script") == 2
    assert page.count("img") == 0
    assert page.text("title").startswith("</title><script>")
    shown = page.run("return [...document.querySelectorAll('#strip-keys-tokens .chip')].map((e) => e.textContent)")
    assert shown[0] == "<s>"
    assert "שלום" in shown
    assert "👩‍👩‍👧" in shown


def test_the_policy_stops_what_is_put_in_afterwards(window, open_page):
    page = open_page(made_maps(attention(3), [["a", "b", "c"]]))
    page.run("""
        const script = document.createElement("script");
        script.textContent = "window.injected = 1";
        document.body.append(script);
        const holder = document.createElement("div");
        holder.innerHTML = "<img src=x onerror='window.injected = 1'>";
        document.body.append(holder);
    """)
    reached = window.execute_async_script(
        "const done = arguments[0]; fetch('data:text/plain,x').then(() => done(true), () => done(false))"
    )
    assert not reached
    assert page.run("return window.injected === undefined")
    assert any("Content Security Policy" in entry["message"] for entry in page.errors())


def test_cross_attention_has_tokens_of_its_own_on_each_side(open_page):
    weights = torch.rand(1, 2, 3, 4).softmax(-1)
    maps = made_maps(
        {"weights": [weights], "head_norms": [weights * 2], "res_norms": [torch.rand(1, 3, 5)]},
        calls=[call("decoder.0.cross", "cross")],
        keys=[Positions("input_ids", torch.arange(4))],
        queries=[Positions("decoder_input_ids", torch.arange(3))],
    )
    given = {"input_ids": ["ein", "roter", "ball", "."], "decoder_input_ids": ["<pad>", "a", "red"]}
    page = open_page(maps, tokens=given)
    page.point(2, 1)
    assert page.text("token-title") == "red → roter"
    assert page.text("strip-keys-tokens") == "einroterball."
    assert page.text("strip-queries-tokens") == "<pad>ared"
    page.run("const s = document.getElementById('more'); s.value = 'res_norms'; s.dispatchEvent(new Event('change'))")
    page.settle()
    page.point(2, 4)
    assert page.text("token-title") == "red → residual"


def test_the_prompt_and_what_was_generated_are_told_apart(open_page):
    maps = made_maps(attention(5, calls=1), [list("abcde")], calls=[call("h.0", "causal")])
    page = open_page(maps, prompt=3)
    assert page.text("strip-keys-tokens") == "abcgeneratedde"
    assert page.count("#strip-keys-tokens .prompt") == 3
    assert "prompt" in page.text("legend-note")
    assert page.text("token-title") == "e → e"  # a decoder opens at its last token


def test_patches_lie_over_their_picture(open_page):
    where = Positions("pixel_values", torch.tensor([-1, *range(6)]), grid=(2, 3))
    maps = made_maps(attention(7, calls=1), keys=[where], queries=[where])
    page = open_page(maps, images=torch.rand(3, 20, 30))
    page.wait("document.querySelectorAll('.picture canvas').length === 2")
    before = page.drawn("#strip-keys .picture canvas")
    page.run("""
        const canvas = document.querySelector("#strip-keys .picture canvas"), box = canvas.getBoundingClientRect();
        const at = {clientX: box.left + box.width * 0.9, clientY: box.top + box.height * 0.9};
        canvas.dispatchEvent(new PointerEvent("pointermove", {...at, bubbles: true}));
    """)
    page.settle()
    assert page.text("token-title") == "1,2 → 1,2"
    assert page.drawn("#strip-keys .picture canvas") != before


def test_the_example_can_be_chosen(open_page):
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    page = open_page(made_maps(attention(4, batch=2), [list("abcd"), ["x", "y", "[PAD]", "[PAD]"]], masks=mask))
    before = page.drawn()
    page.press("e")
    page.wait("document.getElementById('strip-keys-tokens').textContent === 'xy'")
    assert page.drawn() != before
    assert page.run("return document.getElementById('example').value") == "1"


def test_what_was_not_computed_is_said(open_page):
    results = attention(3)
    page = open_page(made_maps({name: results[name] for name in ("weights", "summed_norms")}, [list("abc")]))
    page.press(".", "n")
    assert "without the quantity head_norms" in page.run("return document.querySelector('.panel h3').textContent")
    page.press(",")
    assert page.count(".map:not([hidden])") == 1


def test_it_fits_a_phone(open_page):
    page = open_page(made_maps(attention(len(WORDS), heads=12), [WORDS]))
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        page.settle()
        assert page.run("return document.documentElement.scrollWidth") <= 360
    finally:
        page.window.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
def test_500_tokens_follow_the_pointer(open_page):
    page = open_page(made_maps(attention(500, heads=2, calls=1), [[f"token{i}" for i in range(500)]]))
    assert len(moves(page)) == 60  # what they cost is a benchmark's to say
    assert page.text("token-title").startswith("token180 → ")  # where the last of them went
