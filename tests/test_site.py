"""The site in a browser: no page misses anything, and the long tables can be searched."""

import subprocess
import sys
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By

from tests.browser import chromium, console, needs_chromium

DOCS = Path(__file__).parent.parent / "docs"

pytestmark = [pytest.mark.slow, needs_chromium]


def test_pages_open_from_disk_and_coverage_is_searched(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "sphinx", "-W", "-q", DOCS, tmp_path], check=True)
    with chromium() as driver:
        for page in sorted(tmp_path.glob("*.html")):
            driver.get(page.as_uri())
            assert console(driver) == [], page.name
        driver.get((tmp_path / "proof.html").as_uri())
        assert len(driver.find_elements(By.TAG_NAME, "math")) > 10
        driver.get((tmp_path / "coverage.html").as_uri())
        assert len(driver.find_elements(By.CSS_SELECTOR, "input.filter")) >= 3
        for field in driver.find_elements(By.CSS_SELECTOR, "input.filter"):
            field.send_keys("tf lite0")
        shown = driver.execute_script(  # type: ignore[no-untyped-call]
            "return [...document.querySelectorAll('tbody tr')].filter(row => row.offsetParent && row.textContent"
            ".includes('efficientnet_lite')).map(row => row.cells[0].textContent)"
        )
        assert shown == ["timm/tf_efficientnet_lite0"]
