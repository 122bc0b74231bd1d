"""Do tokenizers mean the same by the same numbers?"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neurograft.applying.huggingface import MEANINGS, carried
from neurograft.errors import MembersDiffer


def check_vocabularies(folders: Sequence[Path]) -> None:
    """Refuse model folders whose tokenizers give the same token different numbers.

    Of a `tokenizer.json` the tokens and their numbers count; of other files every byte.

    Raises:
        MembersDiffer: no tokenizer, or names the first token that has another number.
    """
    first, *others = [(folder, _tokens(folder)) for folder in folders]
    for folder, own in [first, *others]:
        if not own:
            raise MembersDiffer(f"{folder} has no tokenizer, so its vocabulary cannot be compared; leave out the check")
        if own == first[1]:
            continue
        differing = next(name for name in {**first[1], **own} if first[1].get(name) != own.get(name))
        raise MembersDiffer(
            f"{folder} has another vocabulary than {first[0]}: {differing!r:.80} is "
            f"{_shown(own.get(differing))} there and {_shown(first[1].get(differing))} here; rows of embeddings would "
            "be merged that stand for different tokens"
        )


def _tokens(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in carried(folder):
        if file.name == "tokenizer.json":
            content = json.loads(file.read_bytes())
            vocabulary = content["model"].get("vocab", {})
            if isinstance(vocabulary, list):  # a unigram model: tokens with their scores, in order
                vocabulary = {token: i for i, (token, *_) in enumerate(vocabulary)}
            return dict(vocabulary) | {token["content"]: token["id"] for token in content.get("added_tokens", ())}
        if file.name in MEANINGS:
            found[file.name] = file.read_bytes()
    return found


def _shown(value: Any) -> str:
    return "not" if value is None else "other bytes" if isinstance(value, bytes) else str(value)
