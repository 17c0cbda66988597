"""Messages of errors of TensorFlow and Keras, in one line."""

import re

_SURROUNDINGS = re.compile(
    r"File \"|Detected at|Graph execution error|Exception encountered|"
    r"Arguments received|• |\[\[|\[Op:"
)
_OWN = re.compile(r"\n\s*\w+(?:Error|Exception): ")


def brief(error: Exception) -> str:
    """The message of an error without TensorFlow's traces and any colours."""
    text = re.sub(r"\x1b\[\d+m|\{\{.*?\}\}", "", str(error))
    if text.startswith("in user code"):  # of AutoGraph, with lines of code
        text = _OWN.split(text)[-1]
    lines = [line.strip() for line in text.splitlines()]
    kept = [line for line in lines if not _SURROUNDINGS.match(line)]
    return " ".join(" ".join(kept).split())
