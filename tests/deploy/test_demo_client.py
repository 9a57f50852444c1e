"""deploy/demo_client.py with a program in metattnctl's place and a small metrics server."""

import http.server
import subprocess
import sys
import threading

import pytest
from conftest import ROOT

CTL = r"""#!/usr/bin/env python3
import sys, time
prompt = "document" if "--prompt-file" in sys.argv else sys.argv[-1]
for word in f"Answer to {prompt[:20]}:\n\u00dcber Gr\u00fc\u00dfe und ein langer Satz ".split(" ") + ["word "] * 40:
    data = (word + " ").encode()
    sys.stdout.buffer.write(data[:1]); sys.stdout.flush(); time.sleep(0.001)
    sys.stdout.buffer.write(data[1:]); sys.stdout.flush()
print("[11 prompt tokens (0 cached), 46 generated, stop; first token after 12 ms, then 99.5 tokens/s; seed 1]",
      file=sys.stderr)
sys.exit(CODE if "--prompt-file" in sys.argv else 0)
"""

METRICS = """# TYPE metattn_rank_step_seconds_total counter
metattn_rank_step_seconds_total{model="m",rank="0"} SECONDS
metattn_rank_step_seconds_total{model="m",rank="1"} 2.5
metattn_rank_routed_rows_total{model="m",rank="0",mechanism="full"} SECONDS
metattn_rank_routed_rows_total{model="m",rank="1",mechanism="linear"} SECONDS
metattn_rank_routed_rows_total{model="m",rank="1",mechanism="local"} 7
metattn_rank_attention_read_bytes_total{model="m",rank="0"} SECONDSe9
metattn_rank_attention_dense_bytes_total{model="m",rank="0"} SECONDSe10
metattn_prompt_tokens_total 100
metattn_generation_tokens_total SECONDS
"""


@pytest.fixture
def metrics_url():
    class Handler(http.server.BaseHTTPRequestHandler):
        scrapes = 0

        def do_GET(self):
            Handler.scrapes += 1
            self.send_response(200)
            self.end_headers()
            self.wfile.write(METRICS.replace("SECONDS", str(3.0 * Handler.scrapes)).encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()


def run_client(scripts, metrics_url, code=0):
    documents = scripts.tmp / "documents"
    documents.write_text("# Title\n" * 3000)
    ctl = scripts.program("ctl", CTL.replace("CODE", str(code)))
    return subprocess.run([sys.executable, ROOT / "deploy/demo_client.py", "--ctl", ctl, "--server", "x:1",
                           "--metrics", metrics_url, "--documents", documents],
                          capture_output=True, text=True, timeout=60, check=False)


def test_every_line_names_its_job_and_nothing_is_lost(scripts, metrics_url):
    result = run_client(scripts, metrics_url)
    assert result.returncode == 0, result.stdout + result.stderr
    streamed = result.stdout.split("\njob ")[0]
    for name in ("chat 1", "chat 2", "chat 3", "document"):
        lines = [line.split("] ", 1)[1] for line in streamed.splitlines() if line.startswith(f"[{name}]")]
        text = " ".join(lines)
        assert "Über Grüße" in text and text.count("word") == 40
        assert max(map(len, lines)) <= 100


def test_the_summary_shows_jobs_and_the_difference_of_two_scrapes(scripts, metrics_url):
    out = run_client(scripts, metrics_url).stdout
    assert out.count("99.5") == 4
    assert "together: 0 prompt and 3 generated tokens" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["0", "3.00", "0.00", "0.00", "0.00"] in rows
    assert ["1", "0.00", "0.00", "0.00", "0.00"] in rows
    assert "full 50.0 %, linear 50.0 %, local 0.0 %" in out
    assert "attention read 3.00 GB of the 30.00 GB that full attention reads: 90 % saved" in out


def test_a_failed_job_fails_the_demo(scripts, metrics_url):
    result = run_client(scripts, metrics_url, code=4)
    assert result.returncode == 1
    assert "document   failed with code 4" in result.stdout
