"""Plain English sentences for open vocabulary: cut from the docstrings of Python's own standard library."""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from pathlib import Path

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?$")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n\s*\n")


def normalise(text: str) -> str:
    """Lower case words separated by single spaces, without punctuation: the form of every transcript."""
    return " ".join(re.sub(r"[^a-z' ]+", " ", text.lower().replace("’", "'").replace("-", " ")).split())


def _docstrings(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return []
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [doc for node in ast.walk(tree) if isinstance(node, holders) and (doc := ast.get_docstring(node))]


def collect_sentences(min_words: int = 4, max_words: int = 16) -> list[str]:
    """Distinct sentences of the standard library's docstrings in an order that depends on nothing but their text."""
    found: set[str] = set()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        for docstring in _docstrings(path):
            for piece in _SENTENCE.split(docstring):
                words = piece.split()
                if not min_words <= len(words) <= max_words or re.search(r"[^A-Za-z' ,.\n;:!?()-]", piece):
                    continue
                text = normalise(piece)
                plain = text.split()
                if len(plain) >= min_words and all(
                    _WORD.match(w) and len(w) < 15 and re.search("[aeiouy]", w) for w in plain
                ):
                    found.add(text)
    sentences = sorted(found)
    random.Random(0).shuffle(sentences)
    return sentences
