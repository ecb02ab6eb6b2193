"""The names that requests, replies and metadata have on the wire (docs/spec/serving.md, 2)."""

PROTOCOL = 1  # the version in the metadata

# Of a request, besides the policy's own images, state and prompt:
SESSION = "imagewam/session"
STEP = "imagewam/step"
RESET = "imagewam/reset"
SEED = "imagewam/seed"
DEADLINE_MS = "imagewam/deadline_ms"
OBSERVE = "imagewam/observe"
# What the robot executes in the meantime: the actions that are left of its chunk, or the id of that
# chunk and how many of its actions were executed before this observation.
PREV_ACTIONS = "imagewam/prev_actions"
PREV_CHUNK, EXECUTED = "imagewam/prev_chunk", "imagewam/executed"
DELAY, EXECUTE = "imagewam/delay", "imagewam/execute"
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

# How robots execute chunks (docs/spec/serving.md, 5), and how where the policy goes on from them.
MODES = ("sync", "ensemble", "aligned")
RTC_TRAINED, RTC_GUIDED = "rtc_trained", "rtc_guided"
REAL_TIME_MODES = (RTC_TRAINED, RTC_GUIDED)
