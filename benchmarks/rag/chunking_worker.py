"""A peer's splitter in the peer's own environment: cuts all texts each time a line comes in.

Run as ``python chunking_worker.py PEER TOKENIZER SIZE TEXT...`` (langchain or llama_index);
answers every line with one of processor seconds, passages and the largest passage's tokens.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from transformers import AutoTokenizer


def make_splitter(name: str, tokenizer: object, size: int) -> Callable[[str], list[str]]:
    """Return the peer's way to cut a text, counting with the same tokenizer."""
    if name == "langchain":
        from langchain_text_splitters import RecursiveCharacterTextSplitter

        made = RecursiveCharacterTextSplitter.from_huggingface_tokenizer(
            tokenizer, chunk_size=size, chunk_overlap=0
        )
        return made.split_text
    from llama_index.core.node_parser import SentenceSplitter

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    return SentenceSplitter(chunk_size=size, chunk_overlap=0, tokenizer=encode).split_text


def main() -> None:
    """Serve until the input ends."""
    name, folder, size, *paths = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 1 << 30
    texts = [Path(path).read_text(encoding="utf-8") for path in paths]
    split = make_splitter(name, tokenizer, int(size))
    for _ in sys.stdin:
        start = time.process_time()
        passages = [passage for text in texts for passage in split(text)]
        spent = time.process_time() - start
        largest = max(len(tokenizer.encode(one, add_special_tokens=False)) for one in passages)
        told = {"cpu": spent, "passages": len(passages), "largest": largest}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
