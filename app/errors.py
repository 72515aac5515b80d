"""The errors Headrace raises: one tree, so that a caller can catch as widely or as narrowly as it likes."""

from typing import ClassVar, Literal


class HeadraceError(Exception):
    """Anything that Headrace itself refuses or gives up on."""


class DeclarationError(HeadraceError):
    """An event, a feature, a pipeline or an action is declared in a way that cannot work. Raised at import."""


class ConfigError(HeadraceError):
    """A value of the YAML or of the command line is unusable. Raised before anything starts."""


class LogError(HeadraceError):
    """A frame of a log cannot be read: it is torn, of another pipeline, or leaves a gap behind its predecessor."""


class CheckpointError(HeadraceError):
    """A checkpoint cannot be used: torn, or written by another pipeline or other feature declarations."""


class StoreError(HeadraceError):
    """The place of the checkpoints is away, full, or refuses access; the same may succeed later."""


class BrokerError(HeadraceError):
    """The broker refused a request, or did not answer in time."""


class FencedError(BrokerError):
    """Another producer with the same transactional id has taken over; this one can change nothing any more."""


class RefusedRecordError(BrokerError):
    """The broker will not take this record, however often it is sent: it is too large, or invalid."""


class InferenceError(HeadraceError):
    """A model gave no usable answer: it raised, its replica died, or it returned columns of the wrong shape.

    `cause` says in one word why the fallback had to decide; it stands in the decision's reason.
    """

    cause: ClassVar[Literal["failed", "late", "shed", "open"]] = "failed"


class ModelDiedError(InferenceError):
    """The replica died with the call, and the next one with the second: a row of it may have killed them."""


class ModelLateError(InferenceError):
    """A model had not answered when its answer was due; the call is cancelled."""

    cause = "late"


class ModelShedError(InferenceError):
    """A model's queue was full; the call was turned away."""

    cause = "shed"


class BreakerOpenError(InferenceError):
    """A model has failed so often in a row that it is not asked for a while."""

    cause = "open"


class ActionError(HeadraceError):
    """An action could not be carried out."""


class RetryableActionError(ActionError):
    """The action is still to be carried out: the same one may succeed later."""


class SinkAwayError(RetryableActionError):
    """The sink is out of reach, busy or full: no action would succeed now, of whatever partition."""
