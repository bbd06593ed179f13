"""The live page in a browser: what it shows is what the loop does, and it says so when the server is gone."""

import shutil
import signal

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="driving a browser needs the extra `test`")
pytest.importorskip("starlette", reason="serving needs the extra `serve`")
from selenium.webdriver.chrome.options import Options  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

from tests.lab.serving.server import serving  # noqa: E402

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PATIENCE_S = 30


@pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Debian's chromium and chromium-driver")
def test_the_page_follows_the_loop() -> None:
    options = Options()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, Service(DRIVER))
    try:
        with serving("smollm2-135m", "--max-model-len", "512", "--pace", "fast", stops=False) as server:
            browser.get(server.url)
            wait = WebDriverWait(browser, PATIENCE_S)

            def shown(name: str) -> str:
                return browser.execute_script(f"return document.getElementById('tile-{name}')?.textContent ?? ''")

            wait.until(lambda _: shown("tokens") == "0")
            server.client.completions.create(model="smollm2-135m", prompt="hello", max_tokens=60)
            wait.until(lambda _: shown("tokens") == "60")
            assert browser.execute_script("return document.getElementById('model').textContent") == "smollm2-135m"
            assert float(shown("gap-ms")) > 0
            points = browser.execute_script("return document.querySelector('#batches polyline').getAttribute('points')")
            assert len(points.split()) == 60
            assert not browser.get_log("browser")
            server.process.send_signal(signal.SIGINT)
            server.process.wait(PATIENCE_S)
            wait.until(lambda _: not browser.execute_script("return document.getElementById('lost').hidden"))
    finally:
        browser.quit()
