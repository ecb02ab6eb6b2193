"""The names that requests, replies and metadata have on the wire (docs/spec/serving.md, 2)."""

PROTOCOL = 1  # the version in the metadata

# Of a request, besides the policy's own images, state and prompt:
SESSION = "imagewam/session"
STEP = "imagewam/step"
RESET = "imagewam/reset"
SEED = "imagewam/seed"
DEADLINE_MS = "imagewam/deadline_ms"
OBSERVE = "imagewam/observe"
OURS = "imagewam/"  # how the names of these keys begin
ENDPOINT, SESSION_ID = "endpoint", "session_id"  # of RoboArena's clients
INFER_ENDPOINT, RESET_ENDPOINT = "infer", "reset"
RESET_REPLY = {"status": "reset successful"}

# Of a reply:
ACTIONS = "actions"
TIMING = "server_timing"
CHUNK_ID = "imagewam/chunk_id"
CLIPPED = "imagewam/clipped"

# How the text of an error begins:
INVALID = "InvalidObservation"
LATE = "DeadlineMissed"
INTERNAL = "InternalError"

API_KEY = "Api-Key"  # the scheme of the header `Authorization`

MODES = ("sync", "ensemble", "aligned")  # how robots execute chunks (docs/spec/serving.md, 5)
