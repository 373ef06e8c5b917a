"""What the user is told when the input is wrong."""


class InputError(Exception):
    """The user's input is wrong: one line that says what was given, what is accepted, what to do."""
