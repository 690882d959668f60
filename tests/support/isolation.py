"""Run code in a fresh interpreter."""

import subprocess
import sys


def run_python(code: str) -> str:
    """What a new Python process prints when it runs `code`; its error fails the test."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
