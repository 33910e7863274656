"""Every error that treadle raises on purpose, in one tree.

TreadleError
  x UnsupportedModel                  a config value, tensor type or architecture this version does not know
  x UnsupportedOpcode                 a backend has no adapter for an instruction of the plan
  + InvalidPlan                       a plan breaks the contract, or its file is damaged
    x InvalidInstructionBinding
    x InvalidWeightRefCount
    x InvalidRegisterSpec
    x UnsupportedTensorRank
    x InvalidParamBlockABI
    x InvalidStateDescriptorBinding
    x InvalidHandoff
  x InvalidStateLifecycleAction       a state action that the descriptor's lifecycle refuses
  x InvalidBatchSize                  an execution context whose batch is empty or inconsistent
  x UnsupportedBatchSize              a step larger than the backend's capability
  x InvalidWeights                    a tensor is missing, misshaped or of a dtype the plan does not accept
  x InvalidFile                       a model, tokenizer or template file is damaged or hostile
  x OutOfMemoryQuote                  the plan's memory quote exceeds what may be allocated
  x StateExhausted                    no free state page or slot; the scheduler waits or preempts
  x NonFiniteLogits                   a request's logits hold NaN or infinity; other requests go on
  x BackendUnavailable                the backend cannot run on this machine or with this build
  + InvalidRequest                    a request asks for something impossible or unsupported
    x PromptTooLong
  + ModelNotFound                     neither a path, nor in the cache, nor a known name
    x NotInCache                      known, but not downloaded yet
  x DownloadFailed                    a download broke, or its content has the wrong hash
  x InvalidRecord                     governance evidence is missing, stale or altered
  x Cancelled                         the caller cancelled the work

``x`` marks what is raised, ``+`` what is both raised and a parent. A message names the instruction, tensor or
field, what was found and what was expected.
"""

__all__ = [
    "BackendUnavailable",
    "Cancelled",
    "DownloadFailed",
    "InvalidBatchSize",
    "InvalidFile",
    "InvalidHandoff",
    "InvalidInstructionBinding",
    "InvalidParamBlockABI",
    "InvalidPlan",
    "InvalidRecord",
    "InvalidRegisterSpec",
    "InvalidRequest",
    "InvalidStateDescriptorBinding",
    "InvalidStateLifecycleAction",
    "InvalidWeightRefCount",
    "InvalidWeights",
    "ModelNotFound",
    "NonFiniteLogits",
    "NotInCache",
    "OutOfMemoryQuote",
    "PromptTooLong",
    "StateExhausted",
    "TreadleError",
    "UnsupportedBatchSize",
    "UnsupportedModel",
    "UnsupportedOpcode",
    "UnsupportedTensorRank",
]


class TreadleError(Exception):
    """Root of the tree: catch this to catch everything treadle raises on purpose."""


class UnsupportedModel(TreadleError):
    """A config value, tensor type or architecture that this version does not know; nothing is dropped in silence."""


class UnsupportedOpcode(TreadleError):
    """A backend has no adapter for an instruction; names the instruction, opcode, dtype and backend."""


class InvalidPlan(TreadleError):
    """A plan breaks the contract, or its file is damaged, of another kind, or outside the version window."""


class InvalidInstructionBinding(InvalidPlan):
    """An instruction's registers, params or state do not fit its OpSpec."""


class InvalidWeightRefCount(InvalidPlan):
    """An instruction brings another number of weights than its OpSpec's slots."""


class InvalidRegisterSpec(InvalidPlan):
    """A register's dtype, shape or layout is not one that its readers and writer accept."""


class UnsupportedTensorRank(InvalidPlan):
    """A register or weight of more than four axes."""


class InvalidParamBlockABI(InvalidPlan):
    """A param block whose version, opcode or size is not one that this build accepts."""


class InvalidStateDescriptorBinding(InvalidPlan):
    """A state descriptor is missing, shared, unused or of the wrong kind for its instruction."""


class InvalidHandoff(InvalidPlan):
    """Two stages disagree on a register's name, dtype, layout, owner or lifetime."""


class InvalidStateLifecycleAction(TreadleError):
    """A state action that the descriptor's lifecycle refuses; the state is unchanged."""


class InvalidBatchSize(TreadleError):
    """An execution context whose batch is empty, or whose per-slot lists differ in length."""


class UnsupportedBatchSize(TreadleError):
    """A batch larger than the backend's capability, found when the step is routed."""


class InvalidWeights(TreadleError):
    """A tensor is missing, misshaped, or of a dtype that the plan's binding does not accept."""


class InvalidFile(TreadleError):
    """A model, tokenizer or template file is truncated, damaged or hostile."""


class OutOfMemoryQuote(TreadleError):
    """The plan's memory quote exceeds what may be allocated; raised before anything is."""


class StateExhausted(TreadleError):
    """The state pool has no free page or slot; nothing was changed."""


class NonFiniteLogits(TreadleError):
    """A row of logits holds NaN or infinity, so that no token can be drawn; concerns one request only."""


class BackendUnavailable(TreadleError):
    """The backend named cannot run on this machine, or this build does not carry it."""


class InvalidRequest(TreadleError):
    """A request asks for something impossible or unsupported; names the field."""


class PromptTooLong(InvalidRequest):
    """The prompt, or the prompt with the tokens asked for, does not fit the context length."""


class ModelNotFound(TreadleError):
    """The name is neither a path, nor in the cache, nor one that can be pulled."""


class NotInCache(ModelNotFound):
    """The model is known but not downloaded yet; ``treadle pull`` fetches it."""


class DownloadFailed(TreadleError):
    """A download broke, or what arrived does not have the pinned hash."""


class InvalidRecord(TreadleError):
    """Evidence that a phase needs is missing, failed, stale or altered; names the record or the criterion."""


class Cancelled(TreadleError):
    """The caller cancelled the work before it ended."""
