"""LLM: the synchronous door, in vLLM's shape. Prompts in, outputs out; batching happens behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from treadle.errors import Cancelled, InvalidRequest, StateExhausted
from treadle.inference.backends.base import Numerics
from treadle.inference.core import Stats
from treadle.inference.encoder import Tokens
from treadle.inference.engine import load
from treadle.inference.executor import MemoryQuote, Progress
from treadle.inference.inspection import Inspector
from treadle.inference.interrupt import InterruptGuard
from treadle.inference.loaded import Engine, EngineInfo
from treadle.inference.model_text import ModelText
from treadle.inference.options import EngineOptions
from treadle.inference.request import CompletionOutput, Request, RequestOutput, SamplingParams
from treadle.inference.sinks import AllLogits, LogitSink, NextTokenScores
from treadle.plan.ir import ModelPlans

Prompt = str | Mapping[str, Any]
"""Text, {"prompt": text} or {"prompt_token_ids": ids}."""
Message = Mapping[str, Any]


class LLM:
    """A loaded model. Use as a context manager, or call `close`. Not for use from several threads at once.

    `model`: a path to a GGUF file or a checkpoint's directory, or a name that `treadle models` lists. The options are
    explained at `EngineOptions`. `progress(done, total)` is called as weights are packed. `inspector`: gets the values
    of every instruction, for one sequence at a time.
    Raises what `engine.load` raises, and InvalidRequest for an option out of range.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        backend: str = "cpu",
        threads: int | None = None,
        numerics: Numerics = "fast",
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int = 512,
        kv_dtype: str | None = None,
        max_num_logits: int | None = None,
        state_tokens: int | None = None,
        quantize: str | None = None,
        family_file: str | None = None,
        allow_per_slot: bool = False,
        disable_fusion: Sequence[str] = (),
        fallback: str | None = None,
        weight_cache: bool = True,
        progress: Progress | None = None,
        inspector: Inspector | None = None,
    ) -> None:
        options = EngineOptions(
            backend=backend,
            threads=threads,
            numerics=numerics,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            kv_dtype=kv_dtype,
            max_num_logits=max_num_logits,
            state_tokens=state_tokens,
            quantize=quantize,
            family_file=family_file,
            allow_per_slot=allow_per_slot,
            disable_fusion=tuple(disable_fusion),
            fallback=fallback,
            weight_cache=weight_cache,
        )
        self._loaded: Engine | None = load(model, options, progress, inspector)
        self._guard = InterruptGuard(self._loaded.cancel)

    # --- work ------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Completes every prompt; one output per prompt, in order. Prompts share batches.

        `sampling_params`: for all prompts, or one for each. Raises InvalidRequest, PromptTooLong (before anything
        runs), and NonFiniteLogits once every other prompt has ended. Ctrl-C raises KeyboardInterrupt.
        """
        many = [prompts] if isinstance(prompts, (str, Mapping)) else list(prompts)
        return self._complete([self._tokens(prompt) for prompt in many], sampling_params)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answers one conversation, [{"role", "content"}, ...], or each of several. Raises as `generate`."""
        single = all(isinstance(item, Mapping) for item in messages)
        many = [messages] if single else list(messages)
        return self._complete([self._rendered(item) for item in many], sampling_params)

    def stream(
        self, prompt: Prompt | Sequence[Message], sampling_params: SamplingParams | None = None
    ) -> Iterator[RequestOutput]:
        """Completes a prompt or answers a conversation, output by output; each is cumulative and brings `text_delta`.

        Closing the iterator ends the request. Raises as `generate`, at once for what is wrong with the request.
        """
        text, tokens = self._tokens(prompt) if isinstance(prompt, (str, Mapping)) else self._rendered(prompt)
        requests = self._engine.core.add(tokens, sampling_params or SamplingParams())
        return self._streamed(text, requests)

    def logits(self, prompt_token_ids: Sequence[int] | Sequence[Sequence[int]], chunk: int | None = None) -> Any:
        """Logits of all positions, f32 [len, vocab]; for several prompts a list of such, computed in one batch.

        `chunk`: rows of each prompt that a step feeds. Raises InvalidRequest, PromptTooLong.
        """
        if len(prompt_token_ids) and not isinstance(prompt_token_ids[0], (int, np.integer)):
            return self._all_logits([list(ids) for ids in prompt_token_ids], chunk)  # type: ignore[arg-type]
        return self._all_logits([list(prompt_token_ids)], chunk)[0]  # type: ignore[arg-type]

    def score(self, prompts: Sequence[Sequence[int]], first: int = 0) -> list[NDArray[np.float64]]:
        """Log-probabilities that the model gives the tokens behind position `first` of each prompt of token ids.

        f64 [len - 1 - first] for each prompt, computed in one batch without keeping logits. Raises as `logits`.
        """
        many = [list(tokens) for tokens in prompts]
        if any(not 0 <= first < len(tokens) - 1 for tokens in many):
            raise InvalidRequest(f"first ({first}) must leave a token to score in every prompt")
        sinks = [NextTokenScores(tokens, first) for tokens in many]
        self._fill(many, sinks)
        return [sink.logprobs for sink in sinks]

    def embed(self, texts: Prompt | Sequence[Prompt], *, truncate: bool = False) -> NDArray[np.float32]:
        """Embeddings of the texts, f32 [texts, width], pooled and normalised as the model says. Texts share batches.

        Raises PromptTooLong for a text of more tokens than the model takes; with `truncate` it is cut, as
        sentence-transformers does. Raises InvalidRequest for a model that makes none. Ctrl-C raises KeyboardInterrupt.
        """
        encoder = self._engine.embedder
        if encoder.labels:
            raise InvalidRequest("this encoder classifies, it makes no embeddings; use LLM.rerank (treadle rerank)")
        many = [texts] if isinstance(texts, (str, Mapping)) else list(texts)
        limit = encoder.max_length if truncate else None
        return self._encode([self._whole(text, None, limit) for text in many])

    def rerank(self, query: str, documents: Sequence[str], *, truncate: bool = False) -> NDArray[np.float32]:
        """How well each document answers the query, f32 [documents]: the model's score, higher is better.

        Raises as `embed`; InvalidRequest for a model without a single score.
        """
        encoder = self._engine.embedder
        if encoder.labels != 1:
            found = f"a head of {encoder.labels} labels" if encoder.labels else "no classification head"
            raise InvalidRequest(f"rerank needs a cross-encoder with one label; this model has {found}")
        limit = encoder.max_length if truncate else None
        return self._encode([self._whole(query, document, limit) for document in documents])[:, 0]

    def encode_text(self, text: str) -> tuple[list[int], int | None]:
        """Token ids of plain text, in which control tokens are not recognised; and the id that the model expects in
        front of a text, if it does."""
        tokenizer = self._text.tokenizer
        begins = tokenizer.encode("a")[:1] == [tokenizer.bos_id]
        return tokenizer.encode(text, add_special=False, parse_special=False), tokenizer.bos_id if begins else None

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with what the model expects around a text."""
        return self._text.encode(text)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._text.tokenizer.decode(token_ids, skip_special_tokens)

    # --- facts -----------------------------------------------------------------------------------------------

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    @property
    def plans(self) -> ModelPlans:
        return self._engine.plans

    @property
    def memory_quote(self) -> MemoryQuote:
        return self._engine.memory_quote

    @property
    def memory_measured_bytes(self) -> int:
        """Bytes of all arenas that were really allocated."""
        return self._engine.memory_measured_bytes

    @property
    def stats(self) -> Stats:
        """Sums over all steps so far; a snapshot."""
        return msgspec.structs.replace(self._engine.core.stats)

    @property
    def has_chat_template(self) -> bool:
        text = self._engine.text
        return text is not None and text.template is not None

    @property
    def engine(self) -> Engine:
        """For those who step by themselves."""
        return self._engine

    # --- life ------------------------------------------------------------------------------------------------

    def close(self, abandon: bool = False) -> None:
        """Gives all memory back. May be called twice.

        After a first start it waits until the packed weights are on disk; with `abandon` they are not kept.
        """
        if self._loaded is not None:
            place, self._loaded = self._loaded.place, None
            self._guard.close()
            if place is not None:
                place.finish(abandon)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(abandon=kind is KeyboardInterrupt)

    # --- parts -----------------------------------------------------------------------------------------------

    @property
    def _engine(self) -> Engine:
        if self._loaded is None:
            raise InvalidRequest("this LLM is closed")
        return self._loaded

    @property
    def _text(self) -> ModelText:
        if self._engine.text is None:
            raise InvalidRequest("this checkpoint has no tokenizer: give prompt_token_ids")
        return self._engine.text

    def _tokens(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, str):
            return prompt, self._text.encode(prompt)
        if isinstance(prompt, Mapping):
            if set(prompt) == {"prompt_token_ids"}:
                return None, list(prompt["prompt_token_ids"])
            if set(prompt) == {"prompt"} and isinstance(prompt["prompt"], str):
                return prompt["prompt"], self._text.encode(prompt["prompt"])
        raise InvalidRequest(
            f"prompt must be text, {{'prompt': text}} or {{'prompt_token_ids': ids}}, found {prompt!r:.80}"
        )

    def _rendered(self, messages: Any) -> tuple[str, list[int]]:
        if not isinstance(messages, Sequence) or not all(isinstance(message, Mapping) for message in messages):
            raise InvalidRequest(f"messages must be a list of {{'role', 'content'}}, found {messages!r:.80}")
        text = self._text.render(messages)
        return text, self._text.encode_rendered(text)

    def _complete(
        self,
        prompts: list[tuple[str | None, list[int]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[RequestOutput]:
        params = _one_each(sampling_params, len(prompts))
        core = self._engine.core
        groups: list[list[Request]] = []
        try:
            for (_, tokens), each in zip(prompts, params, strict=True):
                groups.append(core.add(tokens, each))
            self._run([request for group in groups for request in group])
        finally:
            for group in groups:
                for request in group:
                    core.abort(request)
        _raise_errors(groups)
        return [_output(text, group) for (text, _), group in zip(prompts, groups, strict=True)]

    def _run(self, requests: list[Request]) -> None:
        left = sum(not request.finished for request in requests)
        ours = {request.id for request in requests}
        with self._guard:
            while left:
                left -= sum(request.finished and request.id in ours for request in self._step())

    def _step(self) -> list[Request]:
        """One step under the guard; the engine stays usable whatever is raised."""
        try:
            moved = self._engine.core.step()
        except Cancelled:
            self._guard.check()
            raise
        self._guard.check()
        if not moved:
            raise StateExhausted("requests are left, but none can go on")
        return moved

    def _streamed(self, text: str | None, requests: list[Request]) -> Iterator[RequestOutput]:
        """An output whenever there is more; others may have brought the requests further in between."""
        given, shown = _reached(requests), [0] * len(requests)
        try:
            while True:
                now = _reached(requests)
                if now != given:
                    _raise_errors([requests])
                    output = _output(text, requests, shown)
                    given, shown = now, [len(request.text) for request in requests]
                    yield output
                elif all(request.finished for request in requests):
                    return
                else:
                    with self._guard:
                        self._step()
        finally:
            if self._loaded is not None:
                for request in requests:
                    self._loaded.core.abort(request)

    def _fill(self, prompts: Sequence[list[int]], sinks: Sequence[LogitSink], chunk: int | None = None) -> None:
        """Feeds the prompts in one batch; their sinks take the logits."""
        core = self._engine.core
        requests: list[Request] = []
        try:
            for tokens, sink in zip(prompts, sinks, strict=True):
                requests.append(core.add_sink(tokens, sink, chunk))
            self._run(requests)
        finally:
            for request in requests:
                core.abort(request)

    def _whole(self, prompt: Prompt, second: str | None, limit: int | None) -> Tokens:
        if isinstance(prompt, str):
            return self._text.encode_whole(prompt, second, limit)
        text, ids = self._tokens(prompt)
        return Tokens(ids) if text is None else self._text.encode_whole(text, second, limit)

    def _encode(self, sequences: list[Tokens]) -> NDArray[np.float32]:
        encoder = self._engine.embedder
        found = np.empty((len(sequences), encoder.width), np.float32)
        with self._guard:
            try:
                for begin, vectors in encoder.steps(sequences):
                    self._guard.check()
                    found[begin : begin + len(vectors)] = vectors
            except Cancelled:
                self._guard.check()
                raise
        return found

    def _all_logits(self, prompts: list[list[int]], chunk: int | None) -> list[NDArray[np.float32]]:
        sinks = [AllLogits(len(tokens), self._engine.core.vocab_size) for tokens in prompts]
        self._fill(prompts, sinks, chunk)
        return [sink.values for sink in sinks]


def _one_each(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count or not all(isinstance(each, SamplingParams) for each in params):
        raise InvalidRequest(f"sampling_params: one for all prompts or one for each of {count}, found {len(params)}")
    return list(params)


def _reached(requests: Sequence[Request]) -> list[tuple[int, bool]]:
    return [(request.output_length, request.finished) for request in requests]


def _raise_errors(groups: Sequence[Sequence[Request]]) -> None:
    for group in groups:
        for request in group:
            if request.error is not None:
                raise request.error


def _output(prompt: str | None, group: Sequence[Request], shown: Sequence[int] | None = None) -> RequestOutput:
    """What the group's requests have so far; `shown`: characters of each one's text that were given before."""
    first = group[0]
    return RequestOutput(
        request_id=first.group,
        prompt=prompt,
        prompt_token_ids=list(first.prompt_token_ids),
        outputs=[
            CompletionOutput(
                index=request.index,
                text=request.text,
                token_ids=request.output_token_ids,
                cumulative_logprob=None if request.logprobs is None else request.cumulative_logprob,
                logprobs=None if request.logprobs is None else list(request.logprobs),
                finish_reason=None if request.finish_reason is None else request.finish_reason.value,
                stop_reason=request.stop_reason,
                text_delta=request.text[shown[i] if shown else 0 :],
            )
            for i, request in enumerate(group)
        ],
        finished=all(request.finished for request in group),
        metrics=first.metrics,
    )
