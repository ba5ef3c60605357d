"""Sentences of a Markdown file, and which of them bear a number: what a reader would take for a result."""

import re
from collections.abc import Iterator

NAMES = re.compile(
    r"`[^`]*`|\]\([^)]*\)|https?://\S+|arXiv:\S+|\b[A-Za-z]+[-/A-Za-z]*\d[\w.-]*(?:-\d+)*|\b\d+x\d+\b"
    r"|(?<=doi )\S+|SSE2|ViT-B/16"
)
"""What has digits and is no number: code, addresses, names such as ResNet-20, AVX2 and C10."""
END = re.compile(r"(?<=[.?!])\s+(?=[\"(`*\[]*[A-Z0-9])|(?<=[.?!]\*\*)\s+")


def units(markdown: str) -> Iterator[str]:
    """The sentences of the text, rows of tables and comments of code, each on one line and without its mark-up."""
    paragraph: list[str] = []
    fenced = False
    for line in [*markdown.splitlines(), ""]:
        code = fenced or line.startswith("    ")
        if line.startswith("```"):
            fenced = not fenced
        if code or line.startswith(("```", "|", "#")) or not line.strip() or re.match(r"(- |\d+\. )", line):
            yield from _sentences(" ".join(paragraph))
            paragraph = []
        if code:
            comment = line.partition("#")[2].strip()
            if comment:
                yield comment
        elif line.startswith("|"):
            yield line.strip()
        elif line.strip() and not line.startswith(("```", "#")):
            paragraph.append(line.strip().removeprefix("- "))


def _sentences(text: str) -> Iterator[str]:
    yield from (sentence for sentence in END.split(text) if sentence)


def has_number(sentence: str) -> bool:
    """Whether a digit is left when names and code are taken away."""
    return re.search(r"\d", NAMES.sub("", sentence)) is not None
