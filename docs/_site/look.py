"""`make docs-look`: every page of the site in headless Chromium, as a desk and a phone show it.

    python docs/_site/look.py SITE [--shots FOLDER] [--only PART]

It runs in an environment of its own, which has Playwright; the browser is the machine's. With
`--shots` there is a picture of each page in each view, to be looked at.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, Page, sync_playwright

PATIENCE_MS: Final = 600_000
"""Ends a hang, and nothing else: a busy machine is slower."""
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class View:
    """How somebody reads."""

    name: str
    width: int
    height: int
    scheme: Literal["light", "dark"]


VIEWS: Final = (View("desk", 1440, 900, "light"), View("phone", 390, 844, "dark"))

FAULTS: Final = """() => {
  const told = [];
  const text = (node) => node.textContent.trim().replace(/\\s+/g, " ").slice(0, 60);
  for (const image of document.images)
    if (!image.complete || image.naturalWidth === 0) told.push(`picture ${image.src} is broken`);
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width)
    told.push(`it is ${document.documentElement.scrollWidth} wide, its window ${width}`);
  const article = document.querySelector("article") ?? document.body;
  const scrolls = (node) => {
    for (; node && node !== article; node = node.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(node).overflowX)) return true;
    return false;
  };
  for (const node of article.querySelectorAll("*")) {
    const box = node.getBoundingClientRect();
    if (box.width && box.right > width + 1 && !scrolls(node))
      told.push(`<${node.localName}> ${text(node)} ends at ${Math.round(box.right)} of ${width}`);
  }
  if (article.querySelectorAll("h1").length !== 1) told.push("it has not one heading");
  // What Markdown did not take for what it looks like.
  for (const node of article.querySelectorAll("p, li, td, dd")) {
    const own = [...node.childNodes].filter((each) => each.nodeType === Node.TEXT_NODE);
    for (const each of own)
      if (/(^|\\n)\\s*([-*] |\\d+\\. |\\| |#+ |```)|\\]\\(|\\*\\*/.test(each.data))
        told.push(`Markdown is left: ${text(each)}`);
  }
  return told;
}"""
"""In the page: what is wrong with how it is shown."""


@dataclass
class Look:
    """What a page did while it was loaded."""

    host: str
    told: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        """Has the page's errors and requests told."""
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.told.append(f"error: {error}"))
        page.on("request", self._request)
        page.on("response", self._response)

    def _console(self, message: Any) -> None:
        # A browser asks for that by itself, where a page names no picture of its own.
        asked = str(message.location.get("url", ""))
        if message.type in ("error", "warning") and not asked.endswith("/favicon.ico"):
            self.told.append(f"console: {message.text}")

    def _request(self, request: Any) -> None:
        address = urlsplit(request.url)
        if address.scheme in ("http", "https", "ws", "wss") and address.netloc != self.host:
            self.told.append(f"asks {address.netloc}")

    def _response(self, response: Any) -> None:
        if response.status >= 400:
            self.told.append(f"{response.status} for {response.url}")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The site on loopback: `HOST:PORT`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def faults(context: BrowserContext, host: str, name: str, shot: Path | None) -> list[str]:
    """What is wrong with a page in a view."""
    looked = Look(host)
    with context.new_page() as page:
        looked.watch(page)
        page.goto(f"http://{host}/{name}", wait_until="load")
        page.wait_for_load_state("networkidle")  # alone, it comes too early on a busy machine
        looked.told += page.evaluate(FAULTS)
        if shot is not None:
            page.screenshot(path=str(shot), full_page=True)
    return list(dict.fromkeys(looked.told))


def _picture(name: str, view: View) -> str:
    return f"{name.removesuffix('.html').replace('/', '_')}.{view.name}.png"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where a page is not as it should be; 2 where there is no browser or site."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("site", type=Path, help="folder that mkdocs has built")
    parser.add_argument("--shots", type=Path, help="folder for pictures of every page")
    parser.add_argument("--only", default="", help="pages whose path has this in it")
    options = parser.parse_args(arguments)
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    pages = sorted(
        str(path.relative_to(options.site))
        for path in options.site.rglob("*.html")
        if path.name != "404.html" and options.only in str(path.relative_to(options.site))
    )
    if program is None or not pages:
        lacking = f"no page below {options.site}" if program else f"none of {', '.join(BROWSERS)}"
        sys.stderr.write(f"make docs-look: {lacking}\n")
        return 2
    if options.shots is not None:
        options.shots.mkdir(parents=True, exist_ok=True)
    wrong = 0
    with served(options.site) as host, sync_playwright() as playwright:
        # Root, as in containers, can start Chromium without its sandbox alone; the pages are ours.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for view in VIEWS:
            context = browser.new_context(
                viewport={"width": view.width, "height": view.height}, color_scheme=view.scheme
            )
            context.set_default_timeout(PATIENCE_MS)
            for name in pages:
                shot = options.shots / _picture(name, view) if options.shots else None
                for told in faults(context, host, name, shot):
                    wrong += 1
                    sys.stdout.write(f"{name} ({view.name}): {told}\n")
            context.close()
        browser.close()
    sys.stdout.write(f"{len(pages)} pages in {len(VIEWS)} views: {wrong} faults\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
