"""A headless Chromium for tests that open pages."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

BROWSERS = ("google-chrome", "google-chrome-stable", "chromium", "chromium-browser")


@contextlib.contextmanager
def headless_chromium() -> Iterator[Any]:
    """The browser of this machine; skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install -e '.[test]'")
    with api.sync_playwright() as playwright:
        path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
        if path is None and not os.path.exists(playwright.chromium.executable_path):
            pytest.skip("there is no Chromium: apt-get install chromium, or python -m playwright install chromium")
        options = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's own sandbox refuses root
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()
