"""A browser without a window, for tests that open the page: Debian's chromium, told to reach for no network."""

import shutil
import tempfile
import time
from contextlib import contextmanager

import pytest

SIZE = (1400, 1000)


def chromium():
    """The paths of chromium and its driver; the test is skipped where they are not there."""
    pytest.importorskip("selenium", reason='selenium is not installed: pip install -e ".[test]"')
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no chromium with its driver here: apt-get install chromium chromium-driver")
    return browser, driver


@contextmanager
def opened_browser():
    """A driver of a new browser with a folder of its own."""
    browser, driver = chromium()
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = ChromeOptions()
        options.binary_location = browser
        for switch in (
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
            "--disable-dev-shm-usage", f"--user-data-dir={folder}", f"--window-size={SIZE[0]},{SIZE[1]}",
        ):  # fmt: skip
            options.add_argument(switch)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        window = Chrome(options=options, service=Service(driver))
        try:
            yield window
        finally:
            window.quit()


class Page:
    """An open page: what it shows, and keys and pointer on it."""

    def __init__(self, window, file):
        self.window = window
        window.get(file.as_uri())
        self.wait("document.documentElement.dataset.drawn")

    def run(self, script, *arguments):
        return self.window.execute_script(script, *arguments)

    def wait(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not self.run(f"return {condition}"):
            assert time.monotonic() < end, f"{condition} never became true; {self.window.get_log('browser')}"
            time.sleep(0.02)

    def text(self, of):
        return self.run("return document.getElementById(arguments[0]).textContent", of)

    def count(self, selector):
        return self.run("return document.querySelectorAll(arguments[0]).length", selector)

    def drawn(self, selector=".map canvas.base"):
        """The picture on a canvas, as text that is equal where the picture is."""
        return self.run("return document.querySelector(arguments[0]).toDataURL()", selector)

    def press(self, *keys):
        """Keys, one after the other, where the focus is."""
        for key in keys:
            event = "new KeyboardEvent('keydown', {key: arguments[0], bubbles: true, cancelable: true})"
            self.run(f"document.activeElement.dispatchEvent({event})", key)
            self.settle()

    def listed(self, place):
        """The names in one of the two lists of tokens."""
        return self.run(
            "return [...document.querySelectorAll('.list')[arguments[0]].querySelectorAll('.entry:not([hidden]) bdi')]"
            ".map((name) => name.textContent)",
            place,
        )

    def settle(self):
        """Until what was asked for is drawn."""
        self.window.execute_async_script(
            "const done = arguments[0]; setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 0)"
        )

    def click(self, selector):
        self.run("document.querySelector(arguments[0]).click()", selector)
        self.settle()

    def point(self, row, column, event="pointermove", panel=0):
        """The pointer over a cell of a large map."""
        self.run(
            """
            const [row, column, event, place] = arguments;
            const canvas = document.querySelectorAll(".map canvas.base")[place];
            const {left, top, cell} = window.captumNorm.geometry(place), box = canvas.getBoundingClientRect();
            const x = box.left + left + (column + 0.5) * cell, y = box.top + top + (row + 0.5) * cell;
            canvas.dispatchEvent(new PointerEvent(event, {clientX: x, clientY: y, bubbles: true}));
            """, row, column, event, panel,
        )  # fmt: skip
        self.settle()

    def errors(self):
        return [entry for entry in self.window.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
