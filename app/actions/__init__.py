"""Actions: what a decision asks for, and the sinks that carry it out, each with its own cursor in the decision log."""
