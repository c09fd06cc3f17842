"""The site in a browser: no page misses anything, all fit on a phone, code can be copied, long tables searched."""

import subprocess
import sys
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser import chromium, console, needs_chromium

DOCS = Path(__file__).parent.parent / "docs"

SEEN = """return [
    document.documentElement.scrollWidth,
    document.querySelectorAll("div.highlight").length,
    document.querySelectorAll("div.highlight > .copy").length,
]"""

pytestmark = [pytest.mark.slow, needs_chromium]


def test_pages_open_from_disk_and_coverage_is_searched(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "sphinx", "-W", "-q", DOCS, tmp_path], check=True)
    with chromium() as driver:
        phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        for page in sorted(tmp_path.glob("*.html")):
            driver.get(page.as_uri())
            assert console(driver) == [], page.name
            width, blocks, buttons = driver.execute_script(SEEN)  # type: ignore[no-untyped-call]
            assert (width, buttons) == (390, blocks), page.name
        driver.get((tmp_path / "index.html").as_uri())
        front = driver.find_elements(By.CSS_SELECTOR, "div.highlight")
        last = front[2].rect  # behind what to install and what to type comes the result
        assert last["y"] + last["height"] < phone["height"]
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        may = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
        driver.execute_cdp_cmd("Browser.grantPermissions", may)
        driver.get((tmp_path / "index.html").as_uri())
        button = driver.find_element(By.CLASS_NAME, "copy")
        button.click()
        WebDriverWait(driver, 10).until(lambda _: button.text == "Copied")
        copied = driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")  # type: ignore[no-untyped-call]
        assert copied == "pip install --constraint constraints.txt '.[timm]'"
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
