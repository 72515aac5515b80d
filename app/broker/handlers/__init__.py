"""The requests that the broker answers, a handler each: `(state, request) -> response`."""
