"""Headless Chromium for the tests of pages, and what they do in it."""

import csv
import json
import pathlib
import shutil
from collections.abc import Callable

import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs Debian's packages chromium and chromium-driver",
)


def open_chromium(downloads: pathlib.Path) -> webdriver.Chrome:
    """A browser that saves downloads here and logs every request."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    # Named, so that selenium does not look for one in the network.
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior",
        {"behavior": "allow", "downloadPath": str(downloads)},
    )
    return driver


class Page:
    """A report that is open in a browser."""

    def __init__(self, driver: webdriver.Chrome, path: pathlib.Path):
        self.driver, self.path = driver, path

    def open(self, view: str = "", width: int = 1200, height: int = 800):
        """Loads the page anew, with nothing kept from before."""
        metrics = {"width": width, "height": height}
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            metrics | {"deviceScaleFactor": 1, "mobile": width < 600},
        )
        self.driver.get(self.path.as_uri())
        self.driver.execute_script("localStorage.clear()")
        self.driver.get("about:blank")
        self.driver.get(f"{self.path.as_uri()}#view={view}")
        return self

    def reload(self):
        """As a user does it."""
        self.driver.refresh()

    def all(self, selector: str) -> list:
        """The elements that can be seen."""
        found = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return [each for each in found if each.is_displayed()]

    def one(self, selector: str):
        """The first element that can be seen."""
        return self.all(selector)[0]

    def text(self, selector: str) -> str:
        """What the first of them says."""
        return self.one(selector).text

    def click(self, selector: str) -> None:
        """Clicks the first of them."""
        self.one(selector).click()

    def keys(self, *keys: str) -> None:
        """Presses keys, one after another, wherever the focus is."""
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def choose(self, name: str, text: str) -> None:
        """Chooses in a filter, by the beginning of an option's text."""
        options = self.all(f"select[name={name}] option")
        next(each for each in options if each.text.startswith(text)).click()

    def run(self, script: str, *arguments):
        """The value of a JavaScript expression."""
        return self.driver.execute_script(f"return {script}", *arguments)

    def row_ids(self) -> list[str]:
        """The ids in the rows of the list that is shown."""
        # At once, since rows come and go while the list is scrolled.
        texts = self.run(
            "[...document.querySelectorAll('.row .excerpt')]"
            ".filter(each => each.offsetParent)"
            ".map(each => each.textContent)"
        )
        return [text.removeprefix("id ") for text in texts]

    def focused(self) -> str:
        """The text of what has the focus, if anything has."""
        element = "document.activeElement"
        return self.run(
            f"{element} === document.body ? '' : {element}.textContent"
        )

    def exported(self, downloads: pathlib.Path) -> list[dict[str, str]]:
        """The rows of the table that the page exports."""
        target = downloads / f"{self.path.stem}-decisions.csv"
        target.unlink(missing_ok=True)
        self.click("#export")
        self.until(target.exists)
        with open(target, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def until(self, happens: Callable[[], object]) -> None:
        """Waits until it is true, or fails after a while."""
        WebDriverWait(self.driver, 10, 0.05).until(lambda _: happens())

    def requests(self) -> list[str]:
        """The addresses asked for since the last call, but for the page's."""
        entries = self.driver.get_log("performance")
        messages = [json.loads(each["message"])["message"] for each in entries]
        addresses = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        own = self.path.as_uri()
        return [
            address
            for address in addresses
            if not address.startswith((own, "data:", "blob:", "about:"))
        ]

    def complaints(self) -> list[str]:
        """What the browser's console says since the last call."""
        return [each["message"] for each in self.driver.get_log("browser")]
