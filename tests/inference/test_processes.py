"""A loaded engine and the life of its process: forks, and ends while steps run."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time

import pytest

HEAD = """
import os, sys, threading, time
from treadle import LLM, SamplingParams
from treadle.errors import BackendUnavailable
path = sys.argv[1]
prompt = {"prompt_token_ids": list(range(3, 40))}
short = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
def load(**options):
    return LLM(path, backend="cpu", threads=3, **{"max_model_len": 256, **options})
def steps_without_end(llm):
    while True:
        llm.generate(prompt, SamplingParams(temperature=0, max_tokens=400, ignore_eos=True))
def tokens(llm):
    return llm.generate(prompt, short)[0].outputs[0].token_ids
"""


def run(body: str, path: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    script = HEAD + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_forked_child_gets_an_error_and_may_load_anew(tiny_gguf):
    done = run(
        """
        llm = load()
        expected = tokens(llm)
        child = os.fork()
        if child == 0:
            try:
                tokens(llm)
            except BackendUnavailable as error:
                print(error, flush=True)
            print("same" if tokens(load()) == expected else "different", flush=True)
            sys.exit(7)  # with the parent's engine still referenced, and finalised
        status = os.waitpid(child, 0)[1]
        print("status", os.waitstatus_to_exitcode(status), "same" if tokens(llm) == expected else "different")
        """,
        tiny_gguf("llama", "Q8_0"),
    )
    assert done.returncode == 0, done.stderr
    error, child, parent = done.stdout.splitlines()
    assert "forked process" in error
    assert "spawn" in error
    assert child == "same"
    assert parent == "status 7 same", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_fork_during_a_step_leaves_the_child_an_error_and_not_a_lock(tiny_gguf):
    done = run(
        """
        llm = load(max_model_len=500)
        threading.Thread(target=steps_without_end, args=(llm,), daemon=True).start()
        time.sleep(0.5)
        child = os.fork()
        if child == 0:
            try:
                llm.logits([5, 6, 7])
            except BackendUnavailable:
                os._exit(7)
            os._exit(8)
        print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        os._exit(0)
        """,
        tiny_gguf("llama", "Q8_0"),
    )
    assert done.stdout == "status 7\n", done.stderr


@pytest.mark.parametrize("end", ["sys.exit(3)", "raise SystemExit(3)", "llm = None; sys.exit(3)"])
def test_the_interpreter_ends_while_a_step_runs(tiny_gguf, end):
    began = time.monotonic()
    done = run(
        f"""
        llm = load(max_model_len=500)
        threading.Thread(target=steps_without_end, args=(llm,), daemon=True).start()
        time.sleep(0.5)
        {end}
        """,
        tiny_gguf("llama", "Q8_0"),
    )
    assert done.returncode == 3, done.stderr
    assert time.monotonic() - began < 100


def test_the_interpreter_ends_with_an_engine_that_was_not_closed(tiny_gguf):
    done = run("llm = load()\nprint(len(tokens(llm)))\n", tiny_gguf("llama", "Q8_0"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")
