"""What does a page of attention maps cost: bytes, seconds, and milliseconds of script when the pointer moves?

python -m tests.benchmarks.bench_viewer
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from captum_norm.cli.loading import Loaded
from captum_norm.cli.view import view_page
from captum_norm.models import load_sentiment
from captum_norm.viewer import to_html
from tests.viewer.browser import Page, opened_browser
from tests.viewer.made import attention, made_maps

MOVES = """
const done = arguments[0], frame = window.requestAnimationFrame.bind(window), times = [];
let spent = 0, count = 0;
window.requestAnimationFrame = (draw) => frame((now) => {
  const start = performance.now();
  draw(now);
  spent += performance.now() - start;
});
const canvas = document.querySelector(".map canvas.base"), {left, top, cell} = window.captumNorm.geometry(0);
function next() {
  if (count) times.push(spent);
  if (count++ === 60) return done(times);
  const box = canvas.getBoundingClientRect(), start = performance.now();
  const x = box.left + left + ((count * 37) % 500) * cell, y = box.top + top + ((count * 53) % 500) * cell;
  canvas.dispatchEvent(new PointerEvent("pointermove", {clientX: x, clientY: y, bubbles: true}));
  spent = performance.now() - start;
  frame(() => frame(next));
}
next();
"""


def moves(page: Page) -> list[float]:
    """Milliseconds of script for each of 60 moves of the pointer over a map of 500 tokens."""
    times: list[float] = page.window.execute_async_script(MOVES)
    return times


def main() -> None:
    torch.set_num_threads(1)
    model, tokenizer = load_sentiment()
    loaded = Loaded(model, tokenizer, "the sentiment model", "classes")
    view_page(loaded, "warm")
    text = ("a warm and funny film that never feels forced " * 60).split()
    for words in (16, 62, 498):
        start = time.perf_counter()
        page = view_page(loaded, " ".join(text[:words]))
        seconds = time.perf_counter() - start
        print(f"view, {words + 2} tokens, 6 layers, 12 heads: {len(page.encode()) / 1000:.0f} kB, {seconds:.2f} s")
    maps = made_maps(attention(64, heads=12, calls=12), [[f"token{i}" for i in range(64)]])
    start = time.perf_counter()
    size = len(to_html(maps).encode())
    print(f"to_html, 64 tokens, 12 layers, 12 heads: {size / 1000:.0f} kB, {time.perf_counter() - start:.2f} s")
    with opened_browser() as window, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "maps.html"
        to_html(made_maps(attention(500, heads=2, calls=1), [[f"token{i}" for i in range(500)]]), file)
        times = sorted(moves(Page(window, file)))
    print(f"a move of the pointer at 500 tokens: median {statistics.median(times):.1f} ms, 9 in 10 {times[54]:.1f} ms")


if __name__ == "__main__":
    main()
