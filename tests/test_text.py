"""Commands that print, read by a program that ends first."""

import os
import subprocess
import sys

import pytest


@pytest.mark.process
@pytest.mark.parametrize("words", ["benchmarks --list", "dessilbi_jax presets"])
def test_a_reader_that_has_left_is_no_error(words):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", *words.split()]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
