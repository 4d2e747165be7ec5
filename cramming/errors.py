"""What a user can mend: one exception type whose message names the key or file and the mend. Not for bugs."""


def one_line(error: BaseException, most: int = 200) -> str:
    """The beginning of what an exception says, as one line."""
    return " ".join(str(error).split())[:most]


class UserError(Exception):
    """A mistake in a configuration, a file or the machine's set-up.

    The message is one or two sentences: which key or file is wrong, what was found, and what to do. Scripts print it
    without a traceback and leave with the exit status.
    """

    status = 2


class Stopped(UserError):
    """The user ended a run with a signal; the message says how to go on. A sweep ends with it."""


class Passing(UserError):
    """A network, a store, a process or other code stands in the way, no setting or text: what is finished stays."""


class Diverged(UserError):
    """The loss or its gradient is no number any more; the message says at which step."""
