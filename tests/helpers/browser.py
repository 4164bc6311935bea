"""A headless Chromium that looks at a TensorBoard: pages are polled until they show what is looked for."""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.helpers.command_lines import environment

#: Every element of a page, those inside of shadow roots too; `tell` is what is asked of them.
WALK = """
const found = [];
const walk = root => root.querySelectorAll('*').forEach(element => {
    found.push(element);
    if (element.shadowRoot) walk(element.shadowRoot);
});
walk(document);
"""
SHOWN = "found.filter(element => element.getClientRects().length && !['STYLE', 'SCRIPT'].includes(element.tagName))"


def missing() -> str | None:
    """Why there is no browser here, if there is none."""
    try:
        import selenium  # noqa: F401
    except ModuleNotFoundError:
        return "selenium is not installed"
    lacking = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(lacking)} not found (Debian: apt-get install chromium chromium-driver)" if lacking else None


@contextmanager
def chromium(width: int = 1400, height: int = 900) -> Iterator[Any]:
    """A Chromium without a window."""
    from selenium import webdriver

    os.environ["SE_OFFLINE"] = "true"  # selenium looks for no driver to download
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run"):
        options.add_argument(f"--{word}")
    options.add_argument(f"--window-size={width},{height}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.set_page_load_timeout(180)
        yield driver
    finally:
        driver.quit()


@contextmanager
def tensorboard(folder: Path, cwd: Path) -> Iterator[str]:
    """`flowdiff.dashboard` on a free port, and the address of its TensorBoard."""
    command = [sys.executable, "-m", "flowdiff.dashboard", str(folder), "--", "--port", "0", "--reload_interval", "2"]
    said = cwd / "tensorboard.log"
    with said.open("w") as log:
        process = subprocess.Popen(command, cwd=cwd, env=environment(), stdout=log, stderr=log)
    try:
        yield str(until(lambda: address(said, process), 180))
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()


def address(said: Path, process: subprocess.Popen[bytes]) -> str | None:
    """The address that TensorBoard has printed, once it answers there."""
    assert process.poll() is None, said.read_text()
    words = [word for word in said.read_text().split() if word.startswith("http://localhost:")]
    if not words:
        return None
    with suppress(OSError), urllib.request.urlopen(words[0] + "data/runs", timeout=30):
        return words[0]
    return None


def until(found: Any, seconds: float = 120) -> Any:
    """What `found()` returns as soon as that is something."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, f"not seen within {seconds} s"
        time.sleep(0.2)
    return value


def text(driver: Any) -> str:
    """All words of a page that are shown, shadow roots included, a line for each piece."""
    own = f"""{WALK} return {SHOWN}.flatMap(element => [...element.childNodes].filter(node => node.nodeType == 3)
        .map(node => node.textContent.trim()).filter(piece => piece)).join('\\n')"""
    return str(driver.execute_script(own))


def wait_for_text(driver: Any, *words: str) -> str:
    """The text of a page, once all these words are in it."""
    shown = ""

    def all_there() -> bool:
        nonlocal shown
        shown = text(driver)
        return all(word in shown for word in words)

    try:
        until(all_there)
    except AssertionError as error:
        raise AssertionError(f"{[word for word in words if word not in shown]} not in {shown}") from error
    return shown


def images(driver: Any) -> list[str]:
    """The addresses of the pictures that are shown and loaded."""
    seen = f"{WALK} return {SHOWN}.filter(e => e.tagName == 'IMG' && e.naturalWidth > 0).map(e => e.src)"
    return list(driver.execute_script(seen))


def click(driver: Any, words: str, tag: str = "*") -> bool:
    """Click the first element shown with exactly these words; False if there is none yet."""
    press = f"""{WALK} const hit = {SHOWN}.filter(e => e.matches(arguments[1]) && e.textContent.trim() == arguments[0]);
        if (hit.length) hit[0].click(); return hit.length > 0"""
    return bool(driver.execute_script(press, words, tag))
