"""The errors Headrace raises: one tree, so that a caller can catch as widely or as narrowly as it likes."""


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


class BrokerError(HeadraceError):
    """The broker refused a request, or did not answer in time."""


class FencedError(BrokerError):
    """Another producer with the same transactional id has taken over; this one can change nothing any more."""


class RefusedRecordError(BrokerError):
    """The broker will not take this record, however often it is sent: it is too large, or invalid."""


class InferenceError(HeadraceError):
    """A model gave no usable answer: it failed, was too late, or returned columns of the wrong shape."""


class ActionError(HeadraceError):
    """An action could not be carried out."""


class RetryableActionError(ActionError):
    """The sink is away or busy; the same action may succeed later."""
