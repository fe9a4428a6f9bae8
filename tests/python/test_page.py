"""The monitor's page in a headless browser: it loads, shows the figures, asks only its own server.

Left out where there is no chromium. LPLB_PAGE_PNG=FILE keeps a picture for people.
"""

import os
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest

from lplb.runtime import Manager, Monitor

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
               None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium")


def browse(url, profile, *options):
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         f"--user-data-dir={profile}", "--virtual-time-budget=3000",
         "--window-size=1200,1500", *options, url],
        capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Relay(BaseHTTPRequestHandler):
    """Between browser and monitor, as its proxy: writes down whoever is asked."""

    monitor_port, asked = 0, []

    def do_GET(self):
        self.asked.append(self.path)
        path = re.sub(r"^http://[^/]*", "", self.path)
        try:
            answer = urlopen(f"http://127.0.0.1:{self.monitor_port}{path}")
        except HTTPError as error:  # favicon.ico
            self.send_error(error.code)
            return
        with answer:
            body = answer.read()
            self.send_response(200)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def do_CONNECT(self):
        self.asked.append(self.path)
        self.send_error(403)

    def log_message(self, *unused):
        pass


@pytest.fixture
def monitor():
    ranks, experts, layers, slots = 4, 16, 2, 24
    monitor = Monitor(ranks, job="page <b>test</b>", serve=True)
    manager = Manager(layers, experts, ranks, slots, interval=40, min_interval=20, adopt_lag=5,
                      monitor=monitor, always=1)
    rng = np.random.default_rng(1)
    weight = np.exp(rng.normal(0, 1, (layers, experts)))
    for step in range(200):
        counts = np.array([rng.multinomial(4000, w / w.sum()) for w in weight])
        manager.step(step, counts)
        loads = rng.integers(900, 1100, (layers, ranks))
        monitor.step(step, loads=loads, tokens=4000, step_ns=5_000_000, plan_ns=9_000)
    yield monitor
    del manager
    monitor.close()


def test_page(monitor, tmp_path):
    Relay.monitor_port, Relay.asked = monitor.port, []
    relay = ThreadingHTTPServer(("127.0.0.1", 0), Relay)
    threading.Thread(target=relay.serve_forever, daemon=True).start()
    try:
        # Every request of the browser goes through the relay, the loopback's included.
        page = browse("http://lplb.test/", tmp_path / "profile", "--dump-dom",
                      f"--proxy-server=127.0.0.1:{relay.server_port}")
    finally:
        relay.shutdown()
    summary = monitor.summary()
    text = re.sub(r"<(style|script)[^>]*>.*?</\1>", "", page, flags=re.S)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))
    assert "waiting for figures" not in text
    assert "page &lt;b&gt;test&lt;/b&gt;" in text  # a name is text, never markup
    assert "5.00 ms" in text or "5.0 ms" in text or "5 ms" in text
    assert f"{summary['imbalance']['all']['mean']:.2f}" in text
    assert f"{summary['rebalance']['moves']}" in text
    assert "adopt" in text  # events
    asked = [re.sub(r"\?.*", "", a) for a in Relay.asked if "lplb.test" in a]
    assert {"http://lplb.test/", "http://lplb.test/summary.json",
            "http://lplb.test/events.json"} <= set(asked)
    known = re.compile(r"google\w*\.com|gstatic|gvt1|chrome")  # chromium's own
    strange = [a for a in Relay.asked if "lplb.test" not in a and not known.search(a)]
    assert not strange, strange
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    if os.environ.get("LPLB_PAGE_PNG"):
        browse(f"http://127.0.0.1:{monitor.port}/", tmp_path / "other",
               f"--screenshot={os.environ['LPLB_PAGE_PNG']}")
