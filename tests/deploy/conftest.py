"""Helpers for the tests of deploy/: run its scripts as a user would."""

import os
import pathlib
import signal
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def take_interrupts():
    """A shell cannot trap what was ignored when it started, as SIGINT is for background jobs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Scripts:
    """Runs deploy/NAME with a clean environment plus what the test sets."""

    def __init__(self, tmp_path):
        self.tmp = tmp_path
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("METATTN_", "OMPI_"))}
        self.env["TMPDIR"] = str(tmp_path)

    def command(self, name, *args):
        return [str(ROOT / "deploy" / name), *map(str, args)]

    def run(self, name, *args, timeout=60, **kwargs):
        return subprocess.run(self.command(name, *args), env=self.env, text=True, timeout=timeout,
                              capture_output=True, check=False, **kwargs)

    def start(self, name, *args):
        return subprocess.Popen(self.command(name, *args), env=self.env, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, preexec_fn=take_interrupts)

    def program(self, name, text):
        """An executable file with this text; its path."""
        path = self.tmp / name
        path.write_text(text)
        path.chmod(0o755)
        return path


@pytest.fixture
def scripts(tmp_path):
    return Scripts(tmp_path)
