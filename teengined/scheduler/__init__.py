"""Which sequences run in the next step of a deployment. Pure: events in, instructions out, no clock, no socket."""
