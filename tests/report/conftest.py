"""A browser for the tests of pages, one for each of their modules."""

import pytest

from tests.report.browser import open_chromium


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads):
    driver = open_chromium(downloads)
    yield driver
    driver.quit()
