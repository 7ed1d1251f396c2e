"""The page in a browser, where one is installed: it renders, nothing is amiss, and nothing leaves the machine."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from .test_html import SECTIONS, page_of

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")

pytestmark = pytest.mark.skipif(
    not BROWSER, reason="no chromium, chromium-browser or google-chrome on the path"
)

QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--enable-logging=stderr",
)  # fmt: skip
OUTSIDE = "probe.invalid"


@pytest.fixture
def asked() -> Iterator[tuple[int, list[str]]]:
    """The port of a proxy that answers nothing, and what was asked of it."""
    seen: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_error(404)

        do_CONNECT = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server.server_address[1], seen
    server.shutdown()
    thread.join()
    server.server_close()


def opened(text: str, folder: Path, port: int) -> tuple[str, list[str]]:
    """The page as the browser has it after loading, and what its console says."""
    page = folder / "report.html"
    page.write_text(text, encoding="utf-8")
    options = [f"--user-data-dir={folder / 'profile'}", f"--proxy-server=http://127.0.0.1:{port}"]
    done = subprocess.run(
        [BROWSER, *QUIET, *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("name", ["onnxruntime", "<script>alert(1)</script>"])
def test_it_renders_with_nothing_amiss(name: str, tmp_path: Path, asked: tuple[int, list[str]]) -> None:
    found, console = opened(page_of(name), tmp_path, asked[0])
    assert all(f'<section id="{section}">' in found for section in SECTIONS)
    assert found.count("<svg") == 5 and "<script" not in found
    assert console == [] and not [path for path in asked[1] if OUTSIDE in path]


def test_its_policy_stops_what_would_load_or_run(tmp_path: Path, asked: tuple[int, list[str]]) -> None:
    put_in = f'<img src="http://{OUTSIDE}/a.png"><script>document.title = "ran"</script></main>'
    found, console = opened(page_of().replace("</main>", put_in), tmp_path, asked[0])
    assert len(console) == 2 and all("Content Security Policy" in line for line in console)
    assert "<title>ran" not in found and not [path for path in asked[1] if OUTSIDE in path]


def test_the_proxy_sees_what_does_load(tmp_path: Path, asked: tuple[int, list[str]]) -> None:
    opened(f'<title>x</title><img src="http://{OUTSIDE}/a.png">', tmp_path, asked[0])
    assert [path for path in asked[1] if OUTSIDE in path]
