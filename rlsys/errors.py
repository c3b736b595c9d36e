"""Every error rlsys raises on purpose.

Each is also the standard class a caller would expect (`ValueError` for a wrong value, `TimeoutError` for a deadline, ...),
so code that knows nothing of rlsys can still catch it.
"""


class RlsysError(Exception):
    """Root of all errors raised on purpose by rlsys."""


class ConfigError(RlsysError, ValueError):
    """A configuration that cannot run; the message names the key and shows the value."""


class WireError(RlsysError, ValueError):
    """A frame that cannot be decoded; the message says where (byte offset or field path)."""


class TruncatedFrame(WireError):
    """The frame ends before its declared length."""


class CorruptFrame(WireError):
    """A checksum does not match, or the bytes are no msgpack."""


class FrameTooLarge(WireError):
    """A frame, array, string or nesting above the stated limit."""


class SchemaMismatch(WireError):
    """The frame was written by another schema number."""


class WrongType(WireError, TypeError):
    """A field holds a value of another type than its record declares, or the record is another one than expected."""


class JournalError(RlsysError, OSError):
    """The journal on disk is damaged beyond its torn tail, or is used out of order."""


class CheckpointError(RlsysError, OSError):
    """A checkpoint is incomplete, altered, or of another run."""


class ResourceError(RlsysError, RuntimeError):
    """The actors of a run do not fit the cores, memory or GPUs there are."""


class EngineError(RlsysError, RuntimeError):
    """An inference engine could not do what was asked."""


class WorkerDied(RlsysError, RuntimeError):
    """A worker process ended before it answered."""


class LearnerError(RlsysError, RuntimeError):
    """The learner cannot go on: a rank died, a loss is not finite, a reference does not match."""


class SyncError(RlsysError, RuntimeError):
    """Weights did not arrive as sent: names, count, digest or probe log-probabilities differ."""


class SyncTimeout(SyncError, TimeoutError):
    """A weight update missed its deadline."""


class RoundRefused(RlsysError, RuntimeError):
    """A round's result was refused by the gate more often than allowed."""


class PromptsExhausted(RlsysError, LookupError):
    """A prompt source has fewer prompts than a round asks for."""
