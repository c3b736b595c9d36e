"""All errors that rlsys raises on purpose.

Every error is also an instance of the standard class that a caller would expect (`ValueError` for a wrong value,
`TimeoutError` for a deadline, ...), so that code without knowledge of rlsys can catch it.
"""


class RlsysError(Exception):
    """Base class of all errors that rlsys raises on purpose."""


class ConfigError(RlsysError, ValueError):
    """The configuration cannot run. The message names the key and shows the value."""


class WireError(RlsysError, ValueError):
    """A frame cannot be encoded or decoded. The message gives the place (byte offset or field path)."""


class TruncatedFrame(WireError):
    """The frame ends before its declared length."""


class CorruptFrame(WireError):
    """A checksum does not match, or the bytes are not valid msgpack."""


class FrameTooLarge(WireError):
    """A frame, an array, a string or the nesting of records is above the stated limit."""


class SchemaMismatch(WireError):
    """The frame was written with another schema number."""


class WrongType(WireError, TypeError):
    """A field holds a value of another type than its record declares, or the frame holds another record than expected."""


class JournalError(RlsysError, OSError):
    """The journal on disk is damaged before its torn end, or its methods are called out of order."""


class CheckpointError(RlsysError, OSError):
    """A checkpoint is incomplete, altered, or belongs to another run."""


class ResourceError(RlsysError, RuntimeError):
    """The actors of a run do not fit on the available cores, memory or GPUs."""


class EngineError(RlsysError, RuntimeError):
    """An inference engine could not carry out a request."""


class WorkerDied(RlsysError, RuntimeError):
    """A worker process ended, or missed its deadline, before it answered."""


class LearnerError(RlsysError, RuntimeError):
    """The learner cannot continue: a rank died, a loss is not finite, or a reference does not match."""


class SyncError(RlsysError, RuntimeError):
    """The weights did not arrive as they were sent: names, count, digest or probe logprobs differ."""


class SyncTimeout(SyncError, TimeoutError):
    """A weight update missed its deadline."""


class RoundRefused(RlsysError, RuntimeError):
    """The gate refused the result of a round more often than the configuration allows."""


class PromptsExhausted(RlsysError, LookupError):
    """A prompt source has fewer prompts than a round needs."""
