"""The commands on a tiny checkpoint: what they print is what the library computes, and they end well."""

import json
import os
import signal
import subprocess
import time

import pytest
from tests.cli.command import TREADLE, failure, treadle, treadle_json

from treadle import LLM, SamplingParams
from treadle.formats.gguf_writer import GGUFWriter
from treadle.inference.perplexity import engine_sizes, perplexity

PROMPT = "the inner theory"
GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def model(tiny_gguf):
    return tiny_gguf("llama", "Q8_0")


@pytest.fixture(scope="module")
def llm(model):
    with LLM(model) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def answer(llm):
    """The library's answer to PROMPT as a user's message."""
    return llm.chat([{"role": "user", "content": PROMPT}], GREEDY)[0]


def run_json(model, *arguments):
    return treadle_json("run", model, PROMPT, "--temperature", 0, "--max-tokens", 12, *arguments)


def test_run_json_is_what_the_library_computes(model, llm, answer):
    found = run_json(model)
    completion = answer.outputs[0]
    assert found["text"] == completion.text
    assert found["token_ids"] == completion.token_ids
    assert found["finish_reason"] == completion.finish_reason
    prompt, generated = len(answer.prompt_token_ids), len(completion.token_ids)
    assert found["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
    }
    assert found["plan"] == {
        "hash": llm.info.plan_hash,
        "instructions": llm.info.instructions,
        "peak_registers": llm.info.peak_registers,
    }
    assert set(found["timings"]) == {"load_s", "prefill_tok_s", "decode_tok_s"}
    assert all(value > 0 for value in found["timings"].values())
    assert set(found["memory"]) == {"quoted_bytes", "measured_bytes", "peak_rss_bytes"}


def test_run_prints_the_answer_alone_on_stdout(model, answer):
    result = treadle("run", model, PROMPT, "--temperature", 0, "--max-tokens", 12)
    assert result.returncode == 0
    assert result.stdout == answer.outputs[0].text + "\n"
    assert "instructions" in result.stderr
    quiet = treadle("run", model, PROMPT, "--temperature", 0, "--max-tokens", 12, "--quiet")
    assert (quiet.stdout, quiet.stderr) == (result.stdout, "")


def test_run_reads_the_prompt_from_stdin(model, answer):
    result = treadle("run", model, "-", "--temperature", 0, "--max-tokens", 12, "-q", input=PROMPT + "\n")
    assert result.stdout == answer.outputs[0].text + "\n"
    assert "prompt is empty" in failure("run", model, "-", input=" \n")


def test_a_prompt_that_is_not_utf8_is_refused(model):
    assert "not UTF-8" in failure("run", model, b"caf\xe9".decode(errors="surrogateescape"))
    refused = subprocess.run([TREADLE, "run", model, "-"], input=b"caf\xe9", capture_output=True, check=False)
    assert refused.returncode == 1
    assert b"not UTF-8" in refused.stderr
    spoken = subprocess.run([TREADLE, "chat", model], input=b"caf\xe9\n/exit\n", capture_output=True, check=False)
    assert (spoken.returncode, spoken.stdout, spoken.stderr) == (0, b"", b"[that line is not UTF-8]\n")


def test_options_may_stand_before_the_prompt(model, answer):
    result = treadle("run", "-q", model, "--temperature", 0, "--max-tokens", 12, PROMPT)
    assert result.stdout == answer.outputs[0].text + "\n"


def test_run_raw_skips_the_chat_template(model, llm):
    plain = llm.generate(PROMPT, GREEDY)[0]
    assert run_json(model, "--raw")["token_ids"] == plain.outputs[0].token_ids
    assert run_json(model, "--raw")["usage"]["prompt_tokens"] == len(plain.prompt_token_ids)


def test_run_passes_every_sampling_option_on(model, llm):
    chosen = {
        "temperature": 0.9,
        "top_k": 30,
        "top_p": 0.95,
        "min_p": 0.01,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.1,
        "seed": 7,
        "max_tokens": 20,
        "stop": "the",
    }
    params = SamplingParams(**chosen)
    options = [part for name, value in chosen.items() for part in ("--" + name.replace("_", "-"), value)]
    expected = llm.generate(PROMPT, params)[0].outputs[0]
    assert treadle_json("run", model, PROMPT, "--raw", *options)["token_ids"] == expected.token_ids


def test_run_refuses_a_bad_sampling_value_by_name(model):
    assert "top_p" in failure("run", model, PROMPT, "--top-p", "1.5")


def test_the_quote_is_what_run_allocates(model):
    quote = treadle_json("plan", model, "--memory")
    parts = ("weights_bytes", "registers_bytes", "workspace_bytes", "state_bytes")
    assert quote["total_bytes"] == sum(quote[part] for part in parts)
    assert quote["state_bytes_per_token"] == 3 * 2 * 2 * 16 * 2  # layers, k and v, kv heads, head_dim, bytes of f16
    assert quote["state_bytes_per_slot"] == 0
    memory = run_json(model)["memory"]
    assert memory["quoted_bytes"] == quote["total_bytes"]
    assert memory["measured_bytes"] == pytest.approx(quote["total_bytes"], rel=0.02)
    assert memory["peak_rss_bytes"] < 1.25 * quote["total_bytes"] + 100e6


def test_a_plan_is_written_for_a_release(model, tmp_path):
    now, before = tmp_path / "now.plan", tmp_path / "before.plan"
    treadle("plan", model, "--out", now)
    assert treadle("plan", model, "--out", before, "--for-release", "0.1.0").returncode == 0
    assert before.read_bytes() == now.read_bytes()  # there is one version of everything so far
    for release, said in (("0.0.9", "does not read contract version 1"), ("99.0.0", "is later than this one")):
        refused = failure("plan", model, "--out", tmp_path / "no.plan", "--for-release", release)
        assert f"release {release} {said}" in refused
    assert not (tmp_path / "no.plan").exists()
    assert "--for-release goes with --out" in failure("plan", model, "--for-release", "0.1.0")


def test_plan_shows_the_plan_that_runs(model, llm):
    text = treadle("plan", model).stdout
    assert f"plan {llm.info.plan_hash}" in text
    assert "multihead_attention" in text
    assert llm.info.plan_hash in json.dumps(treadle_json("plan", model))


def test_chat_keeps_the_conversation(model, llm):
    first = [{"role": "user", "content": "on the other"}]
    answered = llm.chat(first, GREEDY)[0].outputs[0].text
    second = [*first, {"role": "assistant", "content": answered}, {"role": "user", "content": "a"}]
    again = llm.chat(second, GREEDY)[0].outputs[0].text
    talk = "on the other\na\n/reset\non the other\n/exit\nnot read\n"
    result = treadle("chat", model, "--temperature", 0, "--max-tokens", 12, input=talk)
    assert result.returncode == 0
    assert result.stdout == f"{answered}\n{again}\n{answered}\n"


def long_run(model, **options):
    """A run that goes on for many seconds: the reference backend, one token after another."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    command = [TREADLE, "run", model, "the", "--raw", "--backend", "reference", "--max-num-seqs", "1"]
    # A high temperature keeps to no end-of-sequence token for long; the seed was chosen so that none comes.
    return subprocess.Popen([*command, "--temperature", "1.5", "--seed", "3", "--max-tokens", "500"], **options)


def test_ctrl_c_leaves_a_clean_prompt(model):
    with long_run(model) as process:
        process.stdout.read(8)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert process.returncode == 130
    assert stderr.decode() == "interrupted\n"


def test_ctrl_c_in_chat_stops_the_answer_and_nothing_else(model):
    options = ["--backend", "reference", "--max-num-seqs", "1", "--temperature", "1.5", "--seed", "3"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([TREADLE, "chat", model, *options, "--max-tokens", "450"], **pipes) as process:
        process.stdin.write(b"the\n")
        process.stdin.flush()
        process.stdout.read(8)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(b"/help\n/exit\n", timeout=30)
    assert process.returncode == 0
    assert stdout.endswith(b"\n[stopped]\n")
    assert b"/reset" in stderr
    assert b"Traceback" not in stderr


def test_a_reader_that_goes_away_is_no_traceback(model):
    read, write = os.pipe()
    with long_run(model, stdout=write) as process:
        os.close(write)
        os.read(read, 8)
        os.close(read)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 141
    assert stderr == b""


def test_models_tells_what_is_cached(tmp_path, smollm2):
    here = {row["name"]: row for row in treadle_json("models")["models"]}
    assert here["smollm2"]["cached"]
    assert here["smollm2"]["path"] == str(smollm2)
    empty = treadle_json("models", env={**os.environ, "TREADLE_HOME": str(tmp_path)})
    assert [row["cached"] for row in empty["models"]] == [False] * len(here)


def test_a_model_that_is_not_pulled_says_how(tmp_path):
    line = failure("run", "smollm2", "hello", env={**os.environ, "TREADLE_HOME": str(tmp_path)})
    assert "treadle pull smollm2" in line
    assert "--pull" in line


def test_pull_finds_what_is_there(smollm2):
    assert treadle("pull", "smollm2").stdout == f"smollm2 is at {smollm2}\n"


def test_an_unknown_architecture_is_named(tmp_path):
    writer = GGUFWriter("perceptron9")
    writer.save(tmp_path / "odd.gguf")
    assert "perceptron9" in failure("run", tmp_path / "odd.gguf", "hello")


def test_a_truncated_file_is_one_line(tmp_path, model):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:5000])
    line = failure("plan", cut)
    assert "cut.gguf" in line


def test_perplexity_is_what_the_library_computes(model, tmp_path):
    text = tmp_path / "text"
    text.write_text("the inner theory is on the other then. " * 12)
    found = treadle_json("perplexity", model, text, "--ctx", 32, "--threads", 1)
    with LLM(model, **engine_sizes(32)) as sized:
        expected = perplexity(sized, text.read_text(), 32)
    assert (found["perplexity"], found["scored"]) == (expected.perplexity, expected.scored)
    line = treadle("perplexity", model, "-", "--ctx", 32, "--stride", 8, input=text.read_text()).stdout
    assert line.startswith("perplexity ")
    assert "needs" not in line
    assert "need at least 1024" in failure("perplexity", model, text)
    assert "No such file" in failure("perplexity", model, tmp_path / "none")
    text.write_bytes(b"caf\xe9")
    assert "not UTF-8" in failure("perplexity", model, text)
