"""deploy/launch.sh: placement, exit codes and above all signals. The ranks are small shell programs."""

import os
import pathlib
import signal
import time

import pytest

CORES = len(os.sched_getaffinity(0))

# Rank 0 counts the signals it gets in a file; what it does on them is the test's. Others wait for `end`.
RANK = """#!/bin/bash
cd "$(dirname "$0")"
echo $$ > "pid$OMPI_COMM_WORLD_RANK"
trap 'echo TERM$OMPI_COMM_WORLD_RANK >> signals; {on_term}' TERM
while [ ! -e end ]; do sleep 0.05; done
exit 0
"""


def wait_for(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def alive(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def start_ranks(scripts, on_term, *options):
    program = scripts.program("rank", RANK.replace("{on_term}", on_term))
    process = scripts.start("launch.sh", "-n", 2, *options, program)
    pids = [scripts.tmp / "pid0", scripts.tmp / "pid1"]
    wait_for(lambda: all(p.exists() and p.read_text().strip() for p in pids), 20, "both ranks run")
    return process, [int(p.read_text()) for p in pids]


def signals(scripts):
    path = scripts.tmp / "signals"
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_rank_0_alone_and_lets_it_drain(scripts, number):
    process, _ = start_ranks(scripts, "sleep 0.5; touch end")
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert signals(scripts) == ["TERM0"]


def test_a_second_signal_reaches_rank_0_too(scripts):
    process, _ = start_ranks(scripts, "n=$((n+1)); [ $n = 2 ] && exit 7")
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: signals(scripts) == ["TERM0"], 5, "the first signal arrives")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 7
    assert signals(scripts)[:2] == ["TERM0", "TERM0"]


def test_a_rank_0_that_ignores_two_signals_is_aborted(scripts):
    process, pids = start_ranks(scripts, ":")
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: signals(scripts), 5, "the first signal arrives")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode != 0
    assert not any(map(alive, pids))


def test_killing_the_script_ends_every_rank(scripts):
    process, pids = start_ranks(scripts, "exit 1")
    process.kill()
    wait_for(lambda: not any(map(alive, pids)), 15, "the ranks end")
    process.communicate(timeout=20)


def test_the_exit_code_is_that_of_the_rank_that_failed(scripts):
    program = scripts.program("fails", "#!/bin/sh\n[ $OMPI_COMM_WORLD_RANK = 1 ] && exit 9\nsleep 5\n")
    assert scripts.run("launch.sh", "-n", 2, program).returncode == 9


def test_nothing_is_left_behind(scripts):
    assert scripts.run("launch.sh", "true").returncode == 0
    assert list(scripts.tmp.glob("metattn-launch*")) == []


def test_the_pid_file_holds_rank_0_while_it_runs(scripts):
    pid_file = scripts.tmp / "rank0.pid"
    process, pids = start_ranks(scripts, "touch end", "--pid-file", pid_file)
    assert int(pid_file.read_text()) == pids[0]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert not pid_file.exists()


def test_ranks_see_threads_and_settings(scripts):
    scripts.env["METATTN_SOMETHING"] = "a b"
    result = scripts.run("launch.sh", "-n", 2, "--threads", 3, "sh", "-c",
                         'echo "$METATTN_THREADS:$METATTN_SOMETHING"')
    assert result.stdout.splitlines() == ["3:a b", "3:a b"]


def test_standard_input_reaches_rank_0(scripts):
    assert scripts.run("launch.sh", "cat", input="hello\n").stdout == "hello\n"


def test_ranks_that_fit_are_bound_to_cores_of_their_own(scripts):
    if CORES < 2:
        pytest.skip("needs two cores")
    result = scripts.run("launch.sh", "-n", 2, "--threads", 1, "sh", "-c",
                         "grep Cpus_allowed_list /proc/self/status")
    if "binding: none" in result.stderr:
        pytest.skip("a quota rules binding out")
    assert len(set(result.stdout.splitlines())) == 2, result.stdout + result.stderr


def test_more_threads_than_cores_yield_and_are_not_bound(scripts):
    result = scripts.run("launch.sh", "-n", 2, "--threads", CORES, "--dry-run", "true")
    assert "--oversubscribe --bind-to none" in result.stdout
    assert "mpi_yield_when_idle 1" in result.stdout


def test_several_hosts_use_tcp_beside_shared_memory(scripts):
    result = scripts.run("launch.sh", "--hosts", "localhost:2,other:3", "--dry-run", "true")
    assert "-n 5" in result.stdout and "self\\,vader\\,tcp" in result.stdout, result.stderr


@pytest.mark.parametrize("arguments, complaint", [
    (["-n", "0", "true"], "not a number of ranks"),
    (["-n", "two", "true"], "not a number of ranks"),
    (["--threads", "-1", "true"], "not a number of threads"),
    (["-n"], "needs a value"),
    (["--what", "true"], "unknown option --what"),
    ([], "no program given"),
    (["/no/such/program"], "does not exist"),
    (["--hosts", "elsewhere.invalid:2", "true"], "first host must be this one"),
    (["--hosts", "localhost:x", "true"], "does not end in a number"),
    (["--hosts", "localhost:1", "-n", "2", "true"], "more than the 1 slots"),
])
def test_a_wrong_command_line_is_explained(scripts, arguments, complaint):
    result = scripts.run("launch.sh", *arguments)
    assert result.returncode == 2
    assert complaint in result.stderr
