"""``treadle run``: one prompt, one answer; the answer on stdout, what was done for it on stderr."""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from treadle.cli.figures import human_bytes, ran_on, rate
from treadle.cli.options import add_engine_options, add_sampling_options, load_model, sampling_params
from treadle.errors import InvalidRequest

if TYPE_CHECKING:
    from treadle.inference.llm import LLM
    from treadle.inference.request import RequestOutput, SamplingParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_options(parser)
    parser.add_argument("prompt", nargs="?", help="the prompt; without it, or with -, it is read from stdin")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the prompt")
    parser.add_argument("--raw", action="store_true", help="feed the prompt as it is, without the chat template")
    add_sampling_options(parser, max_tokens=512)
    parser.add_argument("--quiet", "-q", action="store_true", help="nothing but the answer")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def execute(options: argparse.Namespace) -> int:
    prompt = read_prompt(options.prompt)
    params = sampling_params(options)
    with load_model(options) as llm:
        output = answer(llm, prompt, params, options)
        if options.json:
            print(json.dumps(report(llm, output), ensure_ascii=False))
        elif not options.quiet:
            print(summary(llm, output), file=sys.stderr)
    return 0


def answer(llm: "LLM", prompt: str, params: "SamplingParams", options: argparse.Namespace) -> "RequestOutput":
    """The last output of the stream; unless JSON is wanted, the text is written as it comes."""
    templated = llm.has_chat_template and not options.raw
    last = None
    for output in llm.stream(messages(prompt, options.system) if templated else prompt, params):
        last = output
        if not options.json:
            sys.stdout.write(output.outputs[0].text_delta)
            sys.stdout.flush()
    if last is None:
        raise InvalidRequest("the prompt gave no output")
    if not options.json:
        sys.stdout.write("\n")
        sys.stdout.flush()
    return last


def read_prompt(given: str | None) -> str:
    """The prompt from the command line or stdin. Raises InvalidRequest if there is none, or none in UTF-8."""
    if given is None and sys.stdin.isatty():
        raise InvalidRequest("no prompt: give one as an argument or on stdin")
    try:
        prompt = sys.stdin.read().strip() if given in (None, "-") else str(given)
        prompt.encode()  # bytes of the command line that are not UTF-8 arrive as lone surrogates
    except UnicodeError:
        raise InvalidRequest("the prompt is not UTF-8") from None
    if not prompt:
        raise InvalidRequest("the prompt is empty")
    return prompt


def messages(prompt: str, system: str | None) -> list[dict[str, str]]:
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": prompt}]


def rates(output: "RequestOutput") -> tuple[float, float]:
    """Tokens a second of prefill and of decode; the first output token belongs to the prefill."""
    prompt, generated = len(output.prompt_token_ids), len(output.outputs[0].token_ids)
    return rate(prompt, output.metrics.prefill_s), rate(generated - 1, output.metrics.decode_s)


def report(llm: "LLM", output: "RequestOutput") -> dict[str, object]:
    from treadle.inference.memory import peak_rss_bytes

    completion = output.outputs[0]
    prompt, generated = len(output.prompt_token_ids), len(completion.token_ids)
    prefill, decode = rates(output)
    return {
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "usage": {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated},
        "timings": {
            "load_s": round(llm.info.load_s, 4),
            "prefill_tok_s": round(prefill, 2),
            "decode_tok_s": round(decode, 2),
        },
        "memory": {
            "quoted_bytes": llm.memory_quote.total_bytes,
            "measured_bytes": llm.memory_measured_bytes,
            "peak_rss_bytes": peak_rss_bytes(),
        },
        **ran_on(llm.info),
        "plan": {
            "hash": llm.info.plan_hash,
            "instructions": llm.info.instructions,
            "peak_registers": llm.info.peak_registers,
        },
        "certified": llm.info.certified,
    }


def summary(llm: "LLM", output: "RequestOutput") -> str:
    """Two lines on what was run and what it took."""
    from treadle.inference.memory import peak_rss_bytes

    info = llm.info
    prompt, generated = len(output.prompt_token_ids), len(output.outputs[0].token_ids)
    prefill, decode = rates(output)
    certified = "certified" if info.certified else "uncertified"
    plan = f"{info.instructions} instructions, {human_bytes(info.plan_bytes)}, {info.peak_registers} registers"
    memory = f"{human_bytes(llm.memory_measured_bytes)} as quoted, peak resident {human_bytes(peak_rss_bytes())}"
    if llm.memory_measured_bytes != llm.memory_quote.total_bytes:
        memory = memory.replace("as quoted", f"(quoted {human_bytes(llm.memory_quote.total_bytes)})")
    return (
        f"[{info.model} on {info.backend} ({info.isa}, {info.threads} threads, {info.numerics}), {certified} | "
        f"plan: {plan}]\n"
        f"[load {info.load_s:.2f} s | prompt {prompt} tokens at {prefill:.0f}/s | "
        f"answer {generated} tokens at {decode:.0f}/s | memory {memory}]"
    )
