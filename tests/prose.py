"""
Print sentences that are hard to read, and fail if there are any: C{python tests/prose.py}.

It reads Markdown, manual pages, docstrings and comments. proselint found no such sentence here, and
vale downloads a program: neither is used.
"""

import ast
import re
import subprocess
import sys
import tokenize
from pathlib import Path

FAULTS = {
    "more than 30 words": r"(\S+ ){30}",
    "who as a noun": r"Who(ever)?\b.*[^?]$|.*\b(whoever|(as|by|for|from|of|than|to|with) who)\b",
    "ends in a negation": r".*(?<!default )\b(is|are|was|were|be) (none|nothing|nobody)\W*$",
}


def python(text: str) -> str:
    """Keep the docstrings and comments of a module, line by line."""
    lines = text.splitlines(keepends=True)
    kept = ["\f"] * len(lines)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            place = slice(node.lineno - 1, node.end_lineno)
            kept[place] = [re.sub(r'^\s*(@|- )|"""', "\f", line.rstrip()) for line in lines[place]]
    for kind, comment, (row, column), *_ in tokenize.generate_tokens(iter(lines).__next__):
        if kind == tokenize.COMMENT:
            border = "\f" if lines[row - 1][:column].strip() else ""
            kept[row - 1] = border + comment.lstrip("# ") + border
    return "\n".join(kept)


def markdown(text: str) -> str:
    """Drop code and headings, and separate items and cells."""
    text = re.sub(r"(?ms)^( *)```.*?^\1```", lambda code: "\n" * code[0].count("\n"), text)
    return re.sub(r"(?m)^ {4}.*|^#.*|^ *([-*]|\d\.) |(^| )\|( |$)", "\f", text)


def manual(text: str) -> str:
    """Drop examples and macros from a manual page."""
    text = re.sub(r"(?ms)^\.EX.*?^\.EE", lambda code: "\n" * code[0].count("\n"), text)
    text = re.sub(r"(?m)^\.[BI]?[BIR] (.*)", lambda font: font[1].replace(" ", ""), text)
    return re.sub(r"(?m)(?<=^\.TP\n).*|^\.(\\\"|[A-Z]).*", "\f", text)


def comments(text: str) -> str:
    """Keep the comments of a unit, a script, a Makefile or a program in C."""
    text = re.sub(r"(?m)^(?! *(#|/?\*) ).*|^ *(#|/?\*) {5}.*", "\f", text)
    return re.sub(r"(?m)^ *(#|/?\*) ", "", text)


READERS = {".md": markdown, ".py": python, ".tac": python, ".7": manual, ".8": manual}
READERS |= dict.fromkeys(["", ".c", ".cfg", ".conf", ".service", ".socket", ".toml"], comments)


def findFaults(name: str, text: str) -> list[str]:
    """@return: a line for each fault of a file. Code and a quotation count as one word."""
    found, line = [], 1
    for part in re.split(r"(\f|\n\s*\n)", READERS[Path(name).suffix](text)):
        first = line + len(part) - len(part.lstrip("\n"))
        line += part.count("\n")
        part = re.sub(r"`[^`]+`|[CL]\{[^}]*\}|\]\([^)]*\)|\"[^\"]*\"", "…", " ".join(part.split()))
        for sentence in re.split(r"(?<=[.!?:])(?:\*\*)?\)? ", part):
            faults = [fault for fault, pattern in FAULTS.items() if re.match(pattern, sentence)]
            found += [f"{name}:{first}: {fault}: {sentence}" for fault in faults]
    return found


def main() -> str | None:
    """@return: the faults in the files of the clone, for an exit, or C{None}."""
    found: list[str] = []
    for name in subprocess.check_output(["git", "ls-files"], text=True).splitlines():
        # poetry/ lists what other editions print.
        if Path(name).suffix in READERS and not name.startswith("poetry/"):
            found += findFaults(name, Path(name).read_text("utf-8"))
    return "\n".join(found) or None


if __name__ == "__main__":
    sys.exit(main())
