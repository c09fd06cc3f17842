"""The site in a browser: no page misses anything, and the long tables can be searched."""

import subprocess
import sys
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By

from tests.browser import chromium, console, needs_chromium

DOCS = Path(__file__).parent.parent / "docs"

pytestmark = [pytest.mark.sweep, needs_chromium]


def test_pages_open_from_disk_and_coverage_is_searched(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "sphinx", "-W", "-q", DOCS, tmp_path], check=True)
    with chromium() as driver:
        for page in sorted(tmp_path.glob("*.html")):
            driver.get(page.as_uri())
            assert console(driver) == [], page.name
        assert page.exists()
        driver.get((tmp_path / "proof.html").as_uri())
        assert len(driver.find_elements(By.TAG_NAME, "math")) > 10
        driver.get((tmp_path / "coverage.html").as_uri())
        rows = [row for row in driver.find_elements(By.TAG_NAME, "tr") if "efficientnet_lite0" in row.text]
        assert len(rows) == 2
        for field in driver.find_elements(By.CSS_SELECTOR, "input.filter"):
            field.send_keys("tf lite0")
        assert [row.is_displayed() for row in rows] == ["tf_" in row.text for row in rows]
        shown = [row for row in driver.find_elements(By.CSS_SELECTOR, "tbody tr") if row.is_displayed()]
        assert any("tf_efficientnet_lite0" in row.text for row in shown)
