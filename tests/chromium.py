"""A real browser for the tests of pages: started once for a file, with profiles in which somebody is logged in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from midflight.serve.auth import Access

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
# What the page tells the test about itself: dialogs, policy violations, errors.
WATCH = """
window.bad = [];
document.addEventListener('securitypolicyviolation', e => window.bad.push(`policy: ${e.violatedDirective} ${e.blockedURI}`));
window.addEventListener('error', e => window.bad.push(`error: ${e.message}`));
window.alert = window.confirm = window.prompt = m => window.bad.push(`dialog: ${m}`);
"""


class LoggedIn:
    """A console at ``base``, looked at by somebody who is logged in."""

    def __init__(self, base: str, access: Access, browser: Browser) -> None:
        self.base, self.access, self.browser = base, access, browser

    def context(self, **options) -> BrowserContext:
        """Open a browser profile with somebody logged in."""
        context = self.browser.new_context(**options)
        context.set_default_timeout(15_000)
        context.add_init_script(WATCH)
        context.add_cookies([{"name": "midflight_session", "value": self.access.open_session("ada"), "url": self.base, "httpOnly": True}])
        return context

    def page(self, path: str = "/", **options) -> Page:
        page = self.context(**options).new_page()
        page.goto(self.base + path)
        return page


def has_focus(page: Page, id: str) -> None:
    """Wait until an element has the focus: a browser gives it some time after the page is there."""
    page.wait_for_function("id => document.activeElement.id === id", arg=id)


def launched() -> Iterator[Browser]:
    """Yield a browser, Debian's or the user's where there is one."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield found
        found.close()
