"""The one exception a user is meant to read: it names the file, the field and what to do."""


class CalibrationError(Exception):
    pass
