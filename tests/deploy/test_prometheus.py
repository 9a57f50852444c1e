"""deploy/prometheus against the real promtool: out of Debian's package, unpacked and not installed, because installing
it would start a server."""

import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy/prometheus/metattn.rules.yml"
TOOLS = ROOT / "build/tools/prometheus"


@pytest.fixture(scope="session")
def promtool():
    program = TOOLS / "usr/bin/promtool"
    if not program.exists():
        TOOLS.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", "prometheus"], cwd=TOOLS, check=True, timeout=300)
        package, = TOOLS.glob("prometheus_*.deb")
        subprocess.run(["dpkg-deb", "-x", package, TOOLS], check=True, timeout=60)
        package.unlink()
    return program


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_rules_are_valid(promtool):
    done = run(promtool, "check", "rules", RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_only_then(promtool, tmp_path):
    scenario = (ROOT / "tests/deploy/metattn.rules.test.yml").read_text().replace("RULES", str(RULES))
    (tmp_path / "test.yml").write_text(scenario)
    done = run(promtool, "test", "rules", tmp_path / "test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_name_metrics_that_exist():
    documented = (ROOT / "rpc/metrics.md").read_text()
    for line in RULES.read_text().splitlines():
        for word in line.replace("(", " ").replace("[", " ").split():
            name = word.removesuffix("_sum").removesuffix("_count")
            if word.startswith("metattn_") and not word.endswith(";"):
                assert f"`{name}`" in documented, word
